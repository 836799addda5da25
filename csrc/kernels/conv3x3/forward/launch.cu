#include <algorithm>

#include "kernels/conv3x3/forward/kernel.cuh"
#include "kernels/conv3x3/forward/launch.h"
#include "kernels/conv3x3/forward/maps.h"
#include "kernels/conv3x3/forward/shape.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv3x3_halo;

namespace {

struct Tensors {
    const uint16_t *x, *weight, *residual;
    uint16_t* y;
};

template <ElementType kType, int kChannels, int kFilters, int kStride, Epilogue kEpilogue>
void run_kernel(const Call& call, const Tensors& tensors, const Arguments& arguments, Pointer stream) {
    using P = Plan<kChannels, kFilters, kStride>;
    const Problem& problem = arguments.problem;
    Parameters parameters = {
        tensor_map(call, "x", tensors.x, input_shape<P>(problem, arguments.in_scale), kType),
        tensor_map(call, "weight", tensors.weight, weights_shape<P>(), kType),
        tensor_map(call, "y", tensors.y, output_shape<P>(problem), kType),
        tensor_map(call, "residual", tensors.residual ? tensors.residual : tensors.y, output_shape<P>(problem), kType),
        arguments};
    count_loads(parameters.input);
    promise_constant(parameters.weights, arguments.weights_ready);
    int blocks = std::min(multiprocessors(call), P::tile_count(problem));
    if (kEpilogue == Epilogue::kStatistics) blocks = std::min(blocks, arguments.partial_rows);
    auto kernel = conv3x3_halo_kernel<kType, kChannels, kFilters, kStride, kEpilogue>;
    allow_shared_memory(call, kernel, P::kSharedBytes);
    run_dependent<Parameters>(call, kernel, parameters, blocks, kThreads, P::kSharedBytes, stream);
}

// What is compiled, (channels, filters, stride) each; a build that needs but few of them may say so.
#ifndef CONV3X3_HALO_PLANS
// clang-format off
#define CONV3X3_HALO_PLANS(PLAN)                                          \
    PLAN(64, 64, 1) PLAN(128, 128, 1) PLAN(256, 256, 1) PLAN(512, 512, 1) \
    PLAN(64, 64, 2) PLAN(128, 128, 2) PLAN(256, 256, 2) PLAN(512, 512, 2) \
    PLAN(64, 128, 2) PLAN(128, 256, 2) PLAN(256, 512, 2)
// clang-format on
#endif

// Calls `choose` with channels, filters and stride as constants.
template <class Choose>
void with_plan(const Call& call, int64_t channels, int64_t filters, int64_t stride, Choose choose) {
#define CHOOSE(kChannels, kFilters, kStride)                               \
    if (channels == kChannels && filters == kFilters && stride == kStride) \
        return choose.template operator()<kChannels, kFilters, kStride>();
    CONV3X3_HALO_PLANS(CHOOSE)
#undef CHOOSE
    refuse_channels(call, channels, filters, stride);
}

template <Epilogue kEpilogue>
void run_convolution(const Call& call, const Tensors& tensors, const Arguments& arguments, int element_type, int64_t c,
                     int64_t k, int64_t stride, Pointer stream) {
    with_element_type(call, element_type, [&]<ElementType kType>() {
        with_plan(call, c, k, stride, [&]<int kChannels, int kFilters, int kStride>() {
            run_kernel<kType, kChannels, kFilters, kStride, kEpilogue>(call, tensors, arguments, stream);
        });
    });
}

// What both launchers have in common; channels that do not exist are refused where they are chosen.
Arguments common_arguments(const Call& call, Pointer in_scale, Pointer in_shift, double packed_limit, int64_t n,
                           int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    call.map("x", n, h, w, c);
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.require(packed_limit >= 0, "packed_limit " + std::to_string(packed_limit) + " is negative");
    Arguments arguments = {};
    arguments.problem = make_problem(as_int(n), as_int(h), as_int(w), as_int(stride));
    call.map("y", n, arguments.problem.out_height, arguments.problem.out_width, k);
    arguments.in_scale = call.aligned_or_null<const float>("in_scale", in_scale);
    arguments.in_shift = call.aligned_or_null<const float>("in_shift", in_shift);
    arguments.packed_limit = static_cast<float>(packed_limit);
    return arguments;
}

}  // namespace

void conv3x3_halo_act(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, double packed_limit, Pointer scale,
                      Pointer shift, Pointer residual, Pointer y, int element_type, int64_t n, int64_t h, int64_t w,
                      int64_t c, int64_t k, int64_t stride, bool relu, bool weights_ready, Pointer stream) {
    Call call("conv3x3_halo_act", {n, h, w, c});
    Arguments arguments = common_arguments(call, in_scale, in_shift, packed_limit, n, h, w, c, k, stride);
    call.require((scale == 0) == (shift == 0), "one of scale and shift is missing");
    arguments.scale = call.aligned_or_null<const float>("scale", scale);
    arguments.shift = call.aligned_or_null<const float>("shift", shift);
    arguments.relu = relu;
    arguments.has_residual = residual != 0;
    arguments.weights_ready = weights_ready;
    Tensors tensors = {call.aligned<const uint16_t>("x", x), call.aligned<const uint16_t>("weight", weight),
                       call.aligned_or_null<const uint16_t>("residual", residual), call.aligned<uint16_t>("y", y)};
    run_convolution<Epilogue::kScaleShiftAct>(call, tensors, arguments, element_type, c, k, stride, stream);
}

void conv3x3_halo_stats(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, double packed_limit, Pointer z,
                        Pointer partials, int64_t partial_rows, int element_type, int64_t n, int64_t h, int64_t w,
                        int64_t c, int64_t k, int64_t stride, Pointer stream) {
    Call call("conv3x3_halo_stats", {n, h, w, c});
    Arguments arguments = common_arguments(call, in_scale, in_shift, packed_limit, n, h, w, c, k, stride);
    call.rows("partials", partial_rows, 3 * k);
    arguments.partials = call.aligned<float>("partials", partials);
    arguments.partial_rows = as_int(partial_rows);
    Tensors tensors = {call.aligned<const uint16_t>("x", x), call.aligned<const uint16_t>("weight", weight), nullptr,
                       call.aligned<uint16_t>("z", z)};
    run_convolution<Epilogue::kStatistics>(call, tensors, arguments, element_type, c, k, stride, stream);
}

}  // namespace launch
