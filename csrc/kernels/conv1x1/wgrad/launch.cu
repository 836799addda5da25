#include <algorithm>

#include "kernels/conv1x1/wgrad/kernel.cuh"
#include "kernels/conv1x1/wgrad/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1_wgrad;

namespace {

constexpr int kNarrowFilters = 64, kWideFilters = 128;  // of a block

struct Tensors {
    const uint16_t *g, *z, *x;
    int n, h, w;
};

int64_t strided(int64_t extent, int64_t stride) { return (extent - 1) / stride + 1; }

WgradArguments make_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.map("x", n, h, w, c);
    call.map("g", n, strided(h, stride), strided(w, stride), k);
    WgradArguments arguments = {};
    arguments.tiles = make_tiles(as_int(n), as_int(strided(h, stride)), as_int(strided(w, stride)), as_int(stride));
    arguments.channels = as_int(c);
    arguments.filters = as_int(k);
    arguments.stride = as_int(stride);
    return arguments;
}

int products_tiles(const WgradArguments& p) {
    return p.filters > kNarrowFilters ? WgradVariant<ElementType::kBf16, kWideFilters>::products_tiles(p)
                                      : WgradVariant<ElementType::kBf16, kNarrowFilters>::products_tiles(p);
}

template <ElementType kType, int kFilters>
void run_kernel(const Call& call, const Tensors& tensors, const WgradArguments& arguments, Pointer stream) {
    using V = WgradVariant<kType, kFilters>;
    const WgradArguments& p = arguments;
    MapShape gradient = map_shape(p.tiles, p.filters);
    WgradParameters parameters = {
        tensor_map(call, "g", tensors.g, gradient, kType),
        tensor_map(call, "z", tensors.z ? tensors.z : tensors.g, gradient, kType),
        tensor_map(call, "x", tensors.x, map_shape(p.tiles, tensors.n, tensors.h, tensors.w, p.channels, p.stride),
                   kType),
        arguments};
    count_loads(parameters.g);
    count_loads(parameters.z);
    count_loads(parameters.x);
    multiprocessors(call);  // refuses other GPUs
    auto kernel = conv1x1_wgrad_kernel<kType, kFilters>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run<WgradParameters>(call, kernel, parameters, p.splits * V::products_tiles(p), kThreads, V::kSharedBytes, stream);
}

}  // namespace

void conv1x1_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer x, Pointer in_scale,
                   Pointer in_shift, Pointer partials, int64_t splits, int element_type, int64_t n, int64_t h,
                   int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream) {
    Call call("conv1x1_wgrad", {n, h, w, c, k});
    WgradArguments arguments = make_problem(call, n, h, w, c, k, stride);
    call.require((b == 0) == (c_ == 0), "one of b and c is missing");
    call.require(z != 0 || b == 0, "z is missing, and there is a b to multiply it by");
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.rows("partials", splits, k * c);
    call.require(splits <= arguments.tiles.count(), "partials has " + std::to_string(splits) + " rows for " +
                                                        std::to_string(arguments.tiles.count()) +
                                                        " tiles; a block without a tile has nothing to leave");
    arguments.splits = as_int(splits);
    arguments.norm = {call.aligned<const float>("a", a), call.aligned_or_null<const float>("b", b),
                      call.aligned_or_null<const float>("c", c_)};
    arguments.in_scale = call.aligned_or_null<const float>("in_scale", in_scale);
    arguments.in_shift = call.aligned_or_null<const float>("in_shift", in_shift);
    arguments.partials = call.aligned<float>("partials", partials);
    Tensors tensors = {call.aligned<const uint16_t>("g", g),
                       call.aligned_or_null<const uint16_t>("z", z),
                       call.aligned<const uint16_t>("x", x),
                       as_int(n),
                       as_int(h),
                       as_int(w)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        if (k > kNarrowFilters)
            run_kernel<kType, kWideFilters>(call, tensors, arguments, stream);
        else
            run_kernel<kType, kNarrowFilters>(call, tensors, arguments, stream);
    });
}

int64_t conv1x1_wgrad_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    Call call("conv1x1_wgrad_splits", {n, h, w, c, k});
    WgradArguments problem = make_problem(call, n, h, w, c, k, stride);
    return std::clamp(multiprocessors(call) / products_tiles(problem), 1, problem.tiles.count());
}

}  // namespace launch
