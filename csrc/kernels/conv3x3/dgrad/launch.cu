#include <algorithm>

#include "kernels/conv3x3/dgrad/kernel.cuh"
#include "kernels/conv3x3/dgrad/launch.h"
#include "kernels/conv3x3/forward/maps.h"
#include "kernels/conv3x3/forward/shape.h"
#include "launch/dgrad_tensors.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv3x3_halo_dgrad;

namespace {

// g or z; what lies outside of the map is zero, and dz is made zero there.
template <class P>
MapShape gradient_shape(const Problem& p) {
    return {{P::kDzChannels, p.width, p.height, p.images}, {kSliceChannels, P::kLoadPixels, 1, 1}, {1, 1, 1, 1}, false};
}

// A skip: as dense as it comes, at stride 2 too.
template <class P>
MapShape skip_shape(const DgradArguments& arguments, int phase = 0) {
    Extents extents = phase_extents(arguments.height, arguments.width, P::kPhases, phase);
    return {{P::kDxChannels, extents.width, extents.height, arguments.tiles.problem.images},
            {kSliceChannels, kTileColumns, 1, 1},
            {1, 1, 1, 1},
            false};
}

// One phase of dx or of what is read beside it as a tensor of its own, of every other row and column at stride 2.
template <class P>
MapShape phase_shape(const DgradArguments& arguments, int phase, int stride) {
    MapShape shape = skip_shape<P>(arguments, phase);
    int64_t row = int64_t{arguments.width} * P::kDxChannels;
    shape.pitch = {1, stride * P::kDxChannels, stride * row, arguments.height * row};
    return shape;
}

template <ElementType kType, int kChannels, int kFilters, int kStride, bool kBlockBelow>
void run_kernel(const Call& call, const DgradTensors& tensors, const DgradArguments& arguments, Pointer stream) {
    using P = DgradPlan<kChannels, kFilters, kStride, kBlockBelow>;
    const Problem& problem = arguments.tiles.problem;
    DgradParameters parameters = {};
    parameters.arguments = arguments;
    parameters.g = tensor_map(call, "g", tensors.g, gradient_shape<P>(problem), kType);
    parameters.z = tensor_map(call, "z", tensors.z ? tensors.z : tensors.g, gradient_shape<P>(problem), kType);
    parameters.weights = tensor_map(call, "weight", tensors.weight, weights_shape<P>(), kType);
    auto or_dx = [&](const uint16_t* map) { return map ? map : tensors.dx; };
    for (int phase = 0; phase < P::kPhases; ++phase) {
        Extents extents = phase_extents(arguments.height, arguments.width, P::kPhases, phase);
        if (extents.height == 0 || extents.width == 0) continue;
        MapShape shape = phase_shape<P>(arguments, phase, kStride);
        int64_t first = (int64_t{phase / 2} * arguments.width + phase % 2) * kChannels;
        parameters.dx[phase] = tensor_map(call, "dx", tensors.dx + first, shape, kType);
        parameters.below_z[phase] = tensor_map(call, "below_z", or_dx(tensors.below_z) + first, shape, kType);
        if (kBlockBelow)
            parameters.below_out[phase] = tensor_map(call, "below_out", or_dx(tensors.below_out) + first, shape, kType);
    }
    if (kBlockBelow) {
        parameters.skip = tensor_map(call, "skip", or_dx(tensors.skip), skip_shape<P>(arguments), kType);
        parameters.skip_out = tensor_map(call, "skip_out", or_dx(tensors.skip_out), skip_shape<P>(arguments), kType);
    }
    count_loads(parameters.g);
    count_loads(parameters.z);
    int blocks = std::min(multiprocessors(call), P::tile_count(problem));
    if (arguments.partials) blocks = std::min(blocks, arguments.partial_rows);
    auto kernel = conv3x3_halo_dgrad_kernel<kType, kChannels, kFilters, kStride, kBlockBelow>;
    allow_shared_memory(call, kernel, P::kSharedBytes);
    run<DgradParameters>(call, kernel, parameters, blocks, kThreads, P::kSharedBytes, stream);
}

// What is compiled, (channels, filters, stride, block below) each; a build that needs but few of them may say so. Where
// filters are twice the channels there is one for calls with and without a block below.
#ifndef CONV3X3_HALO_DGRAD_PLANS
// clang-format off
#define CONV3X3_HALO_DGRAD_PLANS(PLAN)                                                                 \
    PLAN(64, 64, 1, false) PLAN(128, 128, 1, false) PLAN(256, 256, 1, false) PLAN(512, 512, 1, false) \
    PLAN(64, 64, 2, false) PLAN(128, 128, 2, false) PLAN(256, 256, 2, false) PLAN(512, 512, 2, false) \
    PLAN(64, 64, 1, true) PLAN(128, 128, 1, true) PLAN(256, 256, 1, true) PLAN(512, 512, 1, true)     \
    PLAN(64, 128, 2, true) PLAN(128, 256, 2, true) PLAN(256, 512, 2, true)
// clang-format on
#endif

// Calls `choose` with channels, filters, stride and whether there is a block below as constants.
template <class Choose>
void with_dgrad_plan(const Call& call, int64_t channels, int64_t filters, int64_t stride, bool block_below,
                     Choose choose) {
#define CHOOSE(kChannels, kFilters, kStride, kBlockBelow)                    \
    if (channels == kChannels && filters == kFilters && stride == kStride && \
        (block_below == kBlockBelow || kFilters > kChannels))                \
        return choose.template operator()<kChannels, kFilters, kStride, kBlockBelow>();
    CONV3X3_HALO_DGRAD_PLANS(CHOOSE)
#undef CHOOSE
    refuse_channels(call, channels, filters, stride);
}

}  // namespace

void conv3x3_halo_dgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer below_z,
                        Pointer below_scale, Pointer below_shift, Pointer below_mean, Pointer below_out, Pointer skip,
                        Pointer skip_out, Pointer dx, Pointer partials, int64_t partial_rows, int element_type,
                        int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream) {
    Call call("conv3x3_halo_dgrad", {n, h, w, c});
    call.map("dx", n, h, w, c);
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    DgradArguments arguments = {};
    arguments.tiles.problem = make_problem(as_int(n), as_int((h - 1) / stride + 1), as_int((w - 1) / stride + 1), 1);
    call.map("g", n, arguments.tiles.problem.height, arguments.tiles.problem.width, k);
    arguments.tiles.has_residual = below_z != 0;
    arguments.has_skip = skip != 0;
    arguments.has_skip_out = skip_out != 0;
    arguments.has_below_out = below_out != 0;
    bool block_below = skip != 0 || below_out != 0;
    call.require(!block_below || stride == 1 || k != c,
                 "skip and below_out go with stride 1, or with twice as many filters as channels");
    arguments.height = as_int(h);
    arguments.width = as_int(w);
    arguments.norm.a = call.aligned<const float>("a", a);
    arguments.norm.b = call.aligned_or_null<const float>("b", b);
    arguments.norm.c = call.aligned_or_null<const float>("c", c_);
    arguments.below_scale = call.aligned_or_null<const float>("below_scale", below_scale);
    arguments.below_shift = call.aligned_or_null<const float>("below_shift", below_shift);
    arguments.below_mean = call.aligned_or_null<const float>("below_mean", below_mean);
    arguments.partials = call.aligned_or_null<float>("partials", partials);
    if (partials != 0) call.rows("partials", partial_rows, 2 * c);
    arguments.partial_rows = as_int(partial_rows);
    DgradTensors tensors = {call.aligned<const uint16_t>("g", g),
                            call.aligned_or_null<const uint16_t>("z", z),
                            call.aligned<const uint16_t>("weight", weight),
                            call.aligned_or_null<const uint16_t>("below_z", below_z),
                            call.aligned_or_null<const uint16_t>("below_out", below_out),
                            call.aligned_or_null<const uint16_t>("skip", skip),
                            call.aligned_or_null<const uint16_t>("skip_out", skip_out),
                            call.aligned<uint16_t>("dx", dx)};
    require_together(call, tensors, arguments);
    with_element_type(call, element_type, [&]<ElementType kType>() {
        with_dgrad_plan(
            call, c, k, stride, block_below, [&]<int kChannels, int kFilters, int kStride, bool kBlockBelow>() {
                run_kernel<kType, kChannels, kFilters, kStride, kBlockBelow>(call, tensors, arguments, stream);
            });
    });
}

}  // namespace launch
