#include <algorithm>

#include "kernels/stem/forward/kernel.cuh"
#include "kernels/stem/forward/launch.h"
#include "kernels/stem/shape.h"
#include "launch/hopper.h"

namespace launch {

using namespace stem;

namespace {

struct Tensors {
    const uint16_t *x, *weight, *residual;
    uint16_t* y;
};

Tensors tensors_of(const Call& call, Pointer x, Pointer weight, Pointer residual, const char* output, Pointer y) {
    return {images_at(call, x), call.aligned<const uint16_t>("weight", weight),
            call.aligned_or_null<const uint16_t>("the residual", residual), call.aligned<uint16_t>(output, y)};
}

Arguments arguments_of(const Tiles& tiles) {
    Arguments arguments = {};
    arguments.problem.tiles = tiles;
    arguments.problem.filters = kFilters;
    return arguments;
}

template <ElementType kType, Epilogue kEpilogue>
void run_kernel(const Call& call, const Tensors& tensors, const Arguments& arguments, int64_t h, int64_t w,
                Pointer stream) {
    using V = Variant<kType, kEpilogue>;
    MapShape output = map_shape(arguments.problem.tiles, kFilters);
    Parameters parameters = {};
    parameters.output = tensor_map(call, "the output", tensors.y, output, kType);
    parameters.residual =
        tensor_map(call, "the residual", tensors.residual ? tensors.residual : tensors.y, output, kType);
    parameters.arguments = arguments;
    parameters.images = {tensors.x, as_int(h), as_int(w)};
    parameters.filters = tensors.weight;
    int blocks = std::min(multiprocessors(call), arguments.problem.tiles.count());
    auto kernel = stem_kernel<kType, kEpilogue>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run_dependent<Parameters>(call, kernel, parameters, blocks, kThreads, V::kSharedBytes, stream);
}

}  // namespace

void stem_act(Pointer x, Pointer weight, Pointer scale, Pointer shift, Pointer residual, Pointer y, int element_type,
              int64_t n, int64_t h, int64_t w, bool relu, Pointer stream) {
    Call call("stem_act", {n, h, w});
    Arguments arguments = arguments_of(stem_tiles_of(call, n, h, w));
    arguments.scale = call.aligned<const float>("scale", scale);
    arguments.shift = call.aligned<const float>("shift", shift);
    arguments.relu = relu;
    arguments.has_residual = residual != 0;
    Tensors tensors = tensors_of(call, x, weight, residual, "y", y);
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run_kernel<kType, Epilogue::kScaleShiftAct>(call, tensors, arguments, h, w, stream);
    });
}

void stem_stats(Pointer x, Pointer weight, Pointer z, Pointer partials, int element_type, int64_t n, int64_t h,
                int64_t w, Pointer stream) {
    Call call("stem_stats", {n, h, w});
    Arguments arguments = arguments_of(stem_tiles_of(call, n, h, w));
    arguments.partials = call.aligned<float>("partials", partials);
    Tensors tensors = tensors_of(call, x, weight, 0, "z", z);
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run_kernel<kType, Epilogue::kStatistics>(call, tensors, arguments, h, w, stream);
    });
}

int64_t stem_partial_rows(int64_t n, int64_t h, int64_t w) {
    return stem_tiles_of(Call("stem_partial_rows", {n, h, w}), n, h, w).count();
}

}  // namespace launch
