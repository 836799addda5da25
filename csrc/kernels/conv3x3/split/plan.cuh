// conv3x3_halo_split: how the work is cut up, and where everything lies in shared memory.
//
// Small tiles, so that 7 x 7 and 14 x 14 pixels waste little of them: 8 x 8 pixels, N of a wgmma, by 64 filters, M. Of
// the slices of 64 input channels each of `splits` blocks takes its share: one image of 7 x 7 pixels with 512 channels,
// of 14 x 14 with 256 or of 28 x 28 with 128 is work for 64 blocks. More splits than slices would not pay: each adds
// 16 KB to what the last block to arrive has to read, while a slice's weights, which a block brings, are 72 KB.
//
// Most of what a block brings are weights, at one image weights that nobody else has asked for: there are stages for
// more than a slice of them, all on their way at once. Nothing but counts depends on the channels and filters: one
// instantiation serves them all.
#pragma once
#include "kernels/conv3x3/forward/kernel.cuh"

namespace conv3x3_halo_split {

using namespace conv3x3_halo;

constexpr int kSplitThreads = 2 * kWarpgroup;  // warpgroup 0 loads, warpgroup 1 multiplies
constexpr int kSplitTileRows = 8;
constexpr int kSplitProducts = kFilterTile * kSplitTileRows * kTileColumns;  // of a tile

template <int kConvStride>
struct SplitPlan : TileShape<kConvStride, kSplitTileRows> {
    using Shape = TileShape<kConvStride, kSplitTileRows>;
    static constexpr int kFilterTiles = 1;
    static constexpr int kSlots = 2;    // halo slices in shared memory
    static constexpr int kStages = 16;  // 64 filters x 64 channels of one tap each
    static constexpr int kStagedRows = kSplitTileRows;
    static constexpr int kStagedBytes = kStagedRows * kTileColumns * kPixelBytes;

    // ---- shared memory, from smem_base() on ----

    static constexpr int kStagedAt = kStages * kFilterBytes;
    static constexpr int kHaloAt = kStagedAt + kStagedBytes;
    static constexpr int kBarriersAt = kHaloAt + kSlots * Shape::kSliceBytes;
    static constexpr int kBarriers = 2 * kSlots + 2 * kStages + 1;
    static constexpr int kFlagAt = (kBarriersAt + 8 * kBarriers + 15) / 16 * 16;
    static constexpr int kSharedBytes = kFlagAt + 16;
    static_assert(kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress weights(int stage) { return smem_base() + stage * kFilterBytes; }
    DEVICE static SmemAddress staged(int) { return smem_base() + kStagedAt; }
    DEVICE static SmemAddress slice(int slot) { return smem_base() + kHaloAt + slot * Shape::kSliceBytes; }
    DEVICE static SmemAddress flag() { return smem_base() + kFlagAt; }

    DEVICE static SmemAddress halo_full(int slot) { return barrier(slot); }
    DEVICE static SmemAddress halo_empty(int slot) { return barrier(kSlots + slot); }
    DEVICE static SmemAddress weights_full(int stage) { return barrier(2 * kSlots + stage); }
    DEVICE static SmemAddress weights_empty(int stage) { return barrier(2 * kSlots + kStages + stage); }
    DEVICE static SmemAddress residual_full(int) { return barrier(2 * kSlots + 2 * kStages); }

  private:
    DEVICE static SmemAddress barrier(int index) { return smem_base() + kBarriersAt + 8 * index; }
};

struct SplitParameters : Parameters {
    int channels, filters, splits;
    float* products;     // (tiles of pixels and filters, splits, accumulator): of each split
    uint32_t* arrivals;  // (tiles of pixels and filters): splits that are done; zero before and after
};

// ---- work ----

// One accumulator's worth: a tile of pixels by 64 filters, over a run of slices.
struct Work {
    int tile;  // of pixels and filters
    Tile pixels;
    int first_filter;
    int split, first_slice, end_slice;
};

// Of pixels and filters.
template <class P>
HOST_DEVICE constexpr int split_tile_count(const Problem& problem, int filters) {
    return P::tile_count(problem) * (filters / kFilterTile);
}

template <class P>
HOST_DEVICE constexpr int work_count(const SplitParameters& parameters) {
    return split_tile_count<P>(parameters.arguments.problem, parameters.filters) * parameters.splits;
}

template <class P>
DEVICE Work work_at(const SplitParameters& parameters, int index) {
    int slices = parameters.channels / kSliceChannels, filter_tiles = parameters.filters / kFilterTile;
    int splits = parameters.splits, tile = index / splits, split = index % splits;
    return {tile,
            tile_at<P>(parameters.arguments.problem, tile / filter_tiles),
            tile % filter_tiles * kFilterTile,
            split,
            split * slices / splits,
            (split + 1) * slices / splits};
}

}  // namespace conv3x3_halo_split
