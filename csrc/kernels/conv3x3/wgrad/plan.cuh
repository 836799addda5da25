// conv3x3_halo_wgrad: how the work is cut up, and where everything lies in shared memory.
//
// A block has 64 filters and 64 input channels, and every `splits`-th tile of output pixels. Tiles, halos and the place
// of a tap in a halo are conv3x3_halo's. The products of all nine taps stay in the registers of three warpgroups from a
// block's first tile to its last.
#pragma once
#include "kernels/conv3x3/dgrad/prologue.cuh"

namespace conv3x3_halo_wgrad {

using namespace conv3x3_halo;
using conv3x3_halo_dgrad::BnBackward;

constexpr int kRows = 3;  // of taps: a warpgroup has the taps of one
constexpr int kTapsOfRow = kTaps / kRows;
constexpr int kProducts = kFilterTile * kSliceChannels / kWarpgroup;  // registers of a thread for one tap
constexpr int kWgradThreads = (1 + kRows) * kWarpgroup;
constexpr int kProducerRegisters = 56, kConsumerRegisters = 152;
static_assert(kProducerRegisters + kRows * kConsumerRegisters <= 4 * 128);

// No weights and hardly any staging: what conv3x3_halo's parts are told of the halo of x.
constexpr Choice choose_wgrad(int stride) { return {stride == 1 ? 16 : 8, 1, 3, 0, 1}; }

template <int kConvStride>
struct WgradPlan : Plan<kSliceChannels, kFilterTile, kConvStride, choose_wgrad(kConvStride)> {
    using Base = Plan<kSliceChannels, kFilterTile, kConvStride, choose_wgrad(kConvStride)>;
    static constexpr int kGroup = kTileColumns * kPixelBytes;  // of dz: a row of the tile
    static constexpr int kGradientBytes = Base::kTileRows * kGroup;
    static constexpr int kGradientAt = (Base::kSharedBytes + 1023) / 1024 * 1024;
    static constexpr int kFullAt = kGradientAt + 2 * Base::kSlots * kGradientBytes;
    static constexpr int kSharedBytes = kFullAt + 8 * Base::kSlots;
    static_assert(kSharedBytes <= 227 * 1024);

    // g, later dz; and z.
    DEVICE static SmemAddress gradient(int slot) { return smem_base() + kGradientAt + slot * kGradientBytes; }
    DEVICE static SmemAddress z(int slot) { return gradient(Base::kSlots + slot); }
    DEVICE static SmemAddress gradient_full(int slot) { return smem_base() + kFullAt + 8 * slot; }
};

struct WgradArguments {
    Problem problem;
    int channels, filters, splits;
    BnBackward norm;
    const float* in_scale;  // (C,) the prologue of x; null: none
    const float* in_shift;  // (C,)
    float packed_limit;     // see fits_packed
    float* partials;        // (splits, K, 9, C)
};

struct WgradParameters {
    TensorMap g, z, x;
    WgradArguments arguments;
};

struct Share {
    int filter_slice, channel_slice, split;
};

DEVICE Share share_of(const WgradArguments& arguments) {
    int slices = arguments.channels / kSliceChannels, pairs = slices * (arguments.filters / kFilterTile);
    int pair = block_index() % pairs;
    return {pair / slices, pair % slices, block_index() / pairs};
}

}  // namespace conv3x3_halo_wgrad
