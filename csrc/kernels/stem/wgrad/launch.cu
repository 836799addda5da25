#include <algorithm>

#include "kernels/stem/shape.h"
#include "kernels/stem/wgrad/kernel.cuh"
#include "kernels/stem/wgrad/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace stem_wgrad;

namespace {

constexpr int64_t kWeights = kFilters * kFilterSize * kFilterSize * kChannels;

struct Tensors {
    const uint16_t *g, *z;
};

template <ElementType kType>
void run_kernel(const Call& call, const Tensors& tensors, Parameters parameters, int blocks, Pointer stream) {
    MapShape gradient = map_shape(parameters.tiles, kFilters);
    parameters.g = tensor_map(call, "g", tensors.g, gradient, kType);
    parameters.z = tensor_map(call, "z", tensors.z ? tensors.z : tensors.g, gradient, kType);
    count_loads(parameters.g);
    count_loads(parameters.z);
    multiprocessors(call);  // refuses other GPUs
    auto kernel = stem_wgrad_kernel<kType>;
    allow_shared_memory(call, kernel, Plan::kSharedBytes);
    run<Parameters>(call, kernel, parameters, blocks, kThreads, Plan::kSharedBytes, stream);
}

}  // namespace

void stem_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c, Pointer x, Pointer partials, int64_t splits,
                int element_type, int64_t n, int64_t h, int64_t w, Pointer stream) {
    Call call("stem_wgrad", {n, h, w});
    Parameters parameters = {};
    parameters.tiles = stem_tiles_of(call, n, h, w);
    call.require((b == 0) == (c == 0), "one of b and c is missing");
    call.require(z != 0 || b == 0, "z is missing, and there is a b to multiply it by");
    call.rows("partials", splits, kWeights);
    call.require(splits <= parameters.tiles.count(), "partials has " + std::to_string(splits) + " rows for " +
                                                         std::to_string(parameters.tiles.count()) + " tiles");
    parameters.images = {images_at(call, x), as_int(h), as_int(w)};
    parameters.norm = {call.aligned<const float>("a", a), call.aligned_or_null<const float>("b", b),
                       call.aligned_or_null<const float>("c", c)};
    parameters.partials = call.aligned<float>("partials", partials);
    Tensors tensors = {call.aligned<const uint16_t>("g", g), call.aligned_or_null<const uint16_t>("z", z)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run_kernel<kType>(call, tensors, parameters, as_int(splits), stream);
    });
}

int64_t stem_wgrad_splits(int64_t n, int64_t h, int64_t w) {
    Call call("stem_wgrad_splits", {n, h, w});
    return std::min(multiprocessors(call), stem_tiles_of(call, n, h, w).count());
}

}  // namespace launch
