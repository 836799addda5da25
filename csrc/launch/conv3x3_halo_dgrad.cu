#include <algorithm>

#include "kernels/conv3x3_halo_dgrad.cuh"
#include "kernels/conv3x3_halo_maps.h"
#include "launch/conv3x3_halo_dgrad.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv3x3_halo_dgrad;

namespace {

struct DgradTensors {
    const uint16_t *g, *z, *weight, *below_z, *below_out, *skip;
    uint16_t* dx;
};

// g or z; what lies outside of the map is zero, and dz is made zero there.
template <class P>
MapShape gradient_shape(const Problem& p) {
    return {{P::kChannels, p.width, p.height, p.images}, {kSliceChannels, P::kLoadPixels, 1, 1}, {1, 1, 1, 1}, false};
}

// One phase of dx or below_z as a tensor of its own, of every other row and column at stride 2.
template <class P>
MapShape phase_shape(const DgradArguments& arguments, int phase, int stride) {
    Extents extents = phase_extents(arguments.height, arguments.width, P::kPhases, phase);
    int64_t row = int64_t{arguments.width} * P::kChannels;
    return {{P::kChannels, extents.width, extents.height, arguments.tiles.problem.images},
            {kSliceChannels, kTileColumns, 1, 1},
            {1, 1, 1, 1},
            false,
            {1, stride * P::kChannels, stride * row, arguments.height * row}};
}

template <ElementType kType, int kChannels, int kStride, bool kBlockBelow>
void run_kernel(const Call& call, const DgradTensors& tensors, const DgradArguments& arguments, Pointer stream) {
    using P = DgradPlan<kChannels, kStride, kBlockBelow>;
    const Problem& problem = arguments.tiles.problem;
    DgradParameters parameters = {};
    parameters.arguments = arguments;
    parameters.g = tensor_map(call, "g", tensors.g, gradient_shape<P>(problem), kType);
    parameters.z = tensor_map(call, "z", tensors.z ? tensors.z : tensors.g, gradient_shape<P>(problem), kType);
    parameters.weights = tensor_map(call, "weight", tensors.weight, weights_shape<P>(), kType);
    const uint16_t* below_z = tensors.below_z ? tensors.below_z : tensors.dx;
    for (int phase = 0; phase < P::kPhases; ++phase) {
        Extents extents = phase_extents(arguments.height, arguments.width, P::kPhases, phase);
        if (extents.height == 0 || extents.width == 0) continue;
        MapShape shape = phase_shape<P>(arguments, phase, kStride);
        int64_t first = (int64_t{phase / 2} * arguments.width + phase % 2) * kChannels;
        parameters.dx[phase] = tensor_map(call, "dx", tensors.dx + first, shape, kType);
        parameters.below_z[phase] = tensor_map(call, "below_z", below_z + first, shape, kType);
    }
    auto of_block = [&](const char* what, const uint16_t* map) {
        return tensor_map(call, what, map ? map : tensors.dx, phase_shape<P>(arguments, 0, kStride), kType);
    };
    if (kBlockBelow) {
        parameters.skip = of_block("skip", tensors.skip);
        parameters.below_out = of_block("below_out", tensors.below_out);
    }
    count_loads(parameters.g);
    count_loads(parameters.z);
    int blocks = std::min(multiprocessors(call), P::tile_count(problem));
    if (arguments.partials) blocks = std::min(blocks, arguments.partial_rows);
    auto kernel = conv3x3_halo_dgrad_kernel<kType, kChannels, kStride, kBlockBelow>;
    allow_shared_memory(call, kernel, P::kSharedBytes);
    run<DgradParameters>(call, kernel, parameters, blocks, kThreads, P::kSharedBytes, stream);
}

// What is compiled, (channels, stride, block below) each; a build that needs but few of them may say so.
#ifndef CONV3X3_HALO_DGRAD_PLANS
// clang-format off
#define CONV3X3_HALO_DGRAD_PLANS(PLAN)                                             \
    PLAN(64, 1, false) PLAN(128, 1, false) PLAN(256, 1, false) PLAN(512, 1, false) \
    PLAN(64, 2, false) PLAN(128, 2, false) PLAN(256, 2, false) PLAN(512, 2, false) \
    PLAN(64, 1, true) PLAN(128, 1, true) PLAN(256, 1, true) PLAN(512, 1, true)
// clang-format on
#endif

// Calls `choose` with channels, stride and whether there is a block below as constants.
template <class Choose>
void with_dgrad_plan(const Call& call, int64_t channels, int64_t stride, bool block_below, Choose choose) {
#define CHOOSE(kChannels, kStride, kBlockBelow)                                   \
    if (channels == kChannels && stride == kStride && block_below == kBlockBelow) \
        return choose.template operator()<kChannels, kStride, kBlockBelow>();
    CONV3X3_HALO_DGRAD_PLANS(CHOOSE)
#undef CHOOSE
    call.require(false, std::to_string(channels) + " channels are none of 64, 128, 256 and 512");
}

void require_together(const Call& call, const DgradTensors& tensors, const DgradArguments& arguments) {
    call.require((arguments.norm.b == nullptr) == (arguments.norm.c == nullptr), "one of b and c is missing");
    call.require(tensors.z || !arguments.norm.b, "z is missing, and there is a b to multiply it by");
    call.require((arguments.below_scale == nullptr) == (arguments.below_shift == nullptr),
                 "one of below_scale and below_shift is missing");
    call.require(tensors.below_z || !arguments.below_scale, "below_z is missing, and there is a below_scale for it");
    call.require((tensors.below_z == nullptr) == (arguments.below_mean == nullptr) &&
                     (tensors.below_z == nullptr) == (arguments.partials == nullptr),
                 "below_z, below_mean and partials must be given together");
    call.require(!tensors.below_out || !arguments.below_scale,
                 "below_out masks in the place of below_scale and below_shift; pass either it or them");
}

}  // namespace

void conv3x3_halo_dgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer below_z,
                        Pointer below_scale, Pointer below_shift, Pointer below_mean, Pointer below_out, Pointer skip,
                        Pointer dx, Pointer partials, int64_t partial_rows, int element_type, int64_t n, int64_t h,
                        int64_t w, int64_t c, int64_t stride, Pointer stream) {
    Call call("conv3x3_halo_dgrad", {n, h, w, c});
    call.map("dx", n, h, w, c);
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    DgradArguments arguments = {};
    arguments.tiles.problem = make_problem(as_int(n), as_int((h - 1) / stride + 1), as_int((w - 1) / stride + 1), 1);
    arguments.tiles.has_residual = below_z != 0;
    arguments.has_skip = skip != 0;
    arguments.has_below_out = below_out != 0;
    bool block_below = skip != 0 || below_out != 0;
    call.require(!block_below || stride == 1, "skip and below_out go with stride 1 alone");
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
                            call.aligned<uint16_t>("dx", dx)};
    require_together(call, tensors, arguments);
    with_element_type(call, element_type, [&]<ElementType kType>() {
        with_dgrad_plan(call, c, stride, block_below, [&]<int kChannels, int kStride, bool kBlockBelow>() {
            run_kernel<kType, kChannels, kStride, kBlockBelow>(call, tensors, arguments, stream);
        });
    });
}

}  // namespace launch
