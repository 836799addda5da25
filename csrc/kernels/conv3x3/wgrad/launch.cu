#include <algorithm>

#include "kernels/conv3x3/wgrad/kernel.cuh"
#include "kernels/conv3x3/wgrad/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv3x3_halo_wgrad;

namespace {

struct WgradTensors {
    const uint16_t *g, *z, *x;
};

// One row of a slice, at stride 2 every second column; for a prologue, OOB NaN where there is no pixel.
template <class P>
MapShape halo_shape(const WgradArguments& arguments) {
    const Problem& p = arguments.problem;
    return {{arguments.channels, p.width, p.height, p.images},
            {kSliceChannels, P::kStride * P::kLoadPixels, 1, 1},
            {1, P::kStride, 1, 1},
            arguments.in_scale != nullptr};
}

MapShape gradient_shape(const WgradArguments& arguments) {
    const Problem& p = arguments.problem;
    return {{arguments.filters, p.out_width, p.out_height, p.images},
            {kSliceChannels, kTileColumns, 1, 1},
            {1, 1, 1, 1},
            false};
}

int pairs_of_slices(int64_t channels, int64_t filters) {
    return as_int(channels / kSliceChannels * (filters / kFilterTile));
}

Problem make_wgrad_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    call.map("x", n, h, w, c);
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.require(c % kSliceChannels == 0, std::to_string(c) + " channels are no multiple of 64");
    Problem problem = make_problem(as_int(n), as_int(h), as_int(w), as_int(stride));
    call.map("g", n, problem.out_height, problem.out_width, k);
    call.require(k % kFilterTile == 0, std::to_string(k) + " filters are no multiple of 64");
    return problem;
}

template <ElementType kType, int kStride>
void run_kernel(const Call& call, const WgradTensors& tensors, const WgradArguments& arguments, Pointer stream) {
    using P = WgradPlan<kStride>;
    MapShape gradient = gradient_shape(arguments);
    WgradParameters parameters = {tensor_map(call, "g", tensors.g, gradient, kType),
                                  tensor_map(call, "z", tensors.z ? tensors.z : tensors.g, gradient, kType),
                                  tensor_map(call, "x", tensors.x, halo_shape<P>(arguments), kType), arguments};
    count_loads(parameters.g);
    count_loads(parameters.z);
    count_loads(parameters.x);
    multiprocessors(call);  // refuses other GPUs
    auto kernel = conv3x3_halo_wgrad_kernel<kType, kStride>;
    allow_shared_memory(call, kernel, P::kSharedBytes);
    int blocks = arguments.splits * pairs_of_slices(arguments.channels, arguments.filters);
    run<WgradParameters>(call, kernel, parameters, blocks, kWgradThreads, P::kSharedBytes, stream);
}

template <class P>
int tiles_of(const Problem& problem) {
    return P::tile_count(problem);
}

}  // namespace

void conv3x3_halo_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer x, Pointer in_scale,
                        Pointer in_shift, double packed_limit, Pointer partials, int64_t splits, int element_type,
                        int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream) {
    Call call("conv3x3_halo_wgrad", {n, h, w, c});
    WgradArguments arguments = {};
    arguments.problem = make_wgrad_problem(call, n, h, w, c, k, stride);
    call.require((b == 0) == (c_ == 0), "one of b and c is missing");
    call.require(z != 0 || b == 0, "z is missing, and there is a b to multiply it by");
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.require(packed_limit >= 0, "packed_limit " + std::to_string(packed_limit) + " is negative");
    call.rows("partials", splits, 9 * k * c);
    arguments.channels = as_int(c);
    arguments.filters = as_int(k);
    arguments.splits = as_int(splits);
    arguments.norm = {call.aligned<const float>("a", a), call.aligned_or_null<const float>("b", b),
                      call.aligned_or_null<const float>("c", c_)};
    arguments.in_scale = call.aligned_or_null<const float>("in_scale", in_scale);
    arguments.in_shift = call.aligned_or_null<const float>("in_shift", in_shift);
    arguments.packed_limit = static_cast<float>(packed_limit);
    arguments.partials = call.aligned<float>("partials", partials);
    WgradTensors tensors = {call.aligned<const uint16_t>("g", g), call.aligned_or_null<const uint16_t>("z", z),
                            call.aligned<const uint16_t>("x", x)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        if (stride == 1)
            run_kernel<kType, 1>(call, tensors, arguments, stream);
        else
            run_kernel<kType, 2>(call, tensors, arguments, stream);
    });
}

int64_t conv3x3_halo_wgrad_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    Call call("conv3x3_halo_wgrad_splits", {n, h, w, c});
    Problem problem = make_wgrad_problem(call, n, h, w, c, k, stride);
    int tiles = stride == 1 ? tiles_of<WgradPlan<1>>(problem) : tiles_of<WgradPlan<2>>(problem);
    return std::clamp(multiprocessors(call) / pairs_of_slices(c, k), 1, tiles);
}

}  // namespace launch
