// conv1x1: how the work is cut up, and where everything lies in shared memory.
#pragma once
#include "device/gemm.cuh"
#include "kernels/parts/pixel_tiles.cuh"

namespace conv1x1 {

using namespace pixels;

constexpr int kSteps = kSliceChannels / 16;   // wgmmas of k = 16 a slice
constexpr int kRowBlocks = kTilePixels / 64;  // wgmmas of M = 64 a tile
constexpr int kRowBlockBytes = 64 * kPixelBytes;

constexpr int kConsumers = 2;  // warpgroups, which take turns with the tiles; warpgroup 0 loads
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kFirstConsumerBarrier = 1;  // named barriers; 0 is cta_sync

constexpr int kSplitFilters = 64;  // of a tile that blocks share

enum class Epilogue { kScaleShiftAct, kStatistics };

struct Problem {
    Tiles tiles;  // of the output
    int channels, filters;
    int stride;
    int splits;  // of the channels, among as many CTAs
};

struct Arguments {
    Problem problem;
    const float* in_scale;  // (C,) the prologue's
    const float* in_shift;  // (C,)
    const float* scale;     // (K,)
    const float* shift;     // (K,)
    bool relu, has_residual;
    bool weights_ready;  // no grid that may still run writes them
    float* partials;     // (tiles, 3, K): count, mean, M2
    float* products;     // (tiles of pixels and filters, splits, accumulators): of each split
    uint32_t* arrivals;  // (tiles of pixels and filters): splits that are done; zero before and after
};

struct Parameters {
    TensorMap input, weights, output, residual;
    Arguments arguments;
};

// ---- work ----

// One accumulator's worth: 128 pixels by a tile of filters, over a run of slices of the channels.
struct Work {
    int tile;  // of pixels and filters
    int pixel_tile, first_filter;
    Box pixels;
    int split, first_slice;
};

HOST_DEVICE constexpr int slice_count(const Problem& p) { return (p.channels + kSliceChannels - 1) / kSliceChannels; }

// The slices of the channels up to a split, and of it.
HOST_DEVICE constexpr int first_slice(const Problem& p, int split) { return split * slice_count(p) / p.splits; }
HOST_DEVICE constexpr int work_slices(const Problem& p, int index) {
    int split = index % p.splits;
    return first_slice(p, split + 1) - first_slice(p, split);
}

// One instantiation.
template <ElementType kElementType, int kFilterCount, Epilogue kEpilogueKind, bool kHasPrologue>
struct Variant {
    static constexpr ElementType kType = kElementType;
    static constexpr int kFilters = kFilterCount;  // of a tile: N of a wgmma
    static constexpr bool kPrologue = kHasPrologue;
    static constexpr Epilogue kEpilogue = kEpilogueKind;
    static constexpr bool kSplits =  // takes problem.splits > 1
        kEpilogue == Epilogue::kScaleShiftAct && !kPrologue && kFilters == kSplitFilters;
    static constexpr int kAccumulators = kFilters / 2;  // registers of a thread for 64 pixels
    static constexpr int kBlockProducts = 64 * kFilters, kSplitProducts = kRowBlocks * kBlockProducts;

    // ---- shared memory, from smem_base() on ----

    static constexpr int kWeightBytes = kFilters * kPixelBytes;  // of one slice
    static constexpr int kStageBytes = kSliceBytes + kWeightBytes;
    static constexpr int kOutputBytes = kFilters / kSliceChannels * kSliceBytes;  // of one consumer
    static constexpr int kMomentBytes = kEpilogue == Epilogue::kStatistics ? kWarps * (kFilters + 2) * 8 : 0;
    static constexpr int kControlBytes = 256;  // barriers and flags
    static constexpr int kStages =
        (227 * 1024 - kControlBytes - kConsumers * (kOutputBytes + kMomentBytes)) / kStageBytes;
    static_assert(kStages >= 2);

    static constexpr int kOutputAt = kStages * kStageBytes;
    static constexpr int kMomentsAt = kOutputAt + kConsumers * kOutputBytes;
    static constexpr int kBarriersAt = kMomentsAt + kConsumers * kMomentBytes;
    static constexpr int kFlagsAt = kBarriersAt + 8 * (2 * kStages + 2 * kConsumers);
    static constexpr int kSharedBytes = kFlagsAt + 16 * kConsumers;
    static_assert(kSharedBytes - kBarriersAt <= kControlBytes && kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress input(int stage) { return smem_base() + stage * kStageBytes; }
    DEVICE static SmemAddress weights(int stage) { return input(stage) + kSliceBytes; }
    // 64 filters of a consumer's output tile.
    DEVICE static SmemAddress output(int consumer, int slice) {
        return smem_base() + kOutputAt + consumer * kOutputBytes + slice * kSliceBytes;
    }
    // A warp's (mean, M2) of each filter, and the count of them all.
    DEVICE static SmemAddress moments(int consumer, int warp, int filter) {
        return smem_base() + kMomentsAt + consumer * kMomentBytes + (warp * kFilters + filter) * 8;
    }
    DEVICE static SmemAddress count(int consumer, int warp) { return moments(consumer, kWarps, 2 * warp); }

    DEVICE static SmemAddress full(int stage) { return smem_base() + kBarriersAt + 8 * stage; }
    DEVICE static SmemAddress empty(int stage) { return full(kStages + stage); }
    DEVICE static SmemAddress residual_full(int consumer) { return full(2 * kStages + consumer); }
    DEVICE static SmemAddress may_multiply(int consumer) { return residual_full(kConsumers + consumer); }
    DEVICE static SmemAddress flag(int consumer) { return smem_base() + kFlagsAt + 16 * consumer; }

    DEVICE static bool has_residual(const Arguments& arguments) {
        return kEpilogue == Epilogue::kScaleShiftAct && arguments.has_residual;
    }

    // ---- work ----

    HOST_DEVICE static int filter_tiles(const Problem& p) { return (p.filters + kFilters - 1) / kFilters; }
    HOST_DEVICE static int tile_count(const Problem& p) { return p.tiles.count() * filter_tiles(p); }
    HOST_DEVICE static int work_count(const Problem& p) { return tile_count(p) * p.splits; }

    // The filters of a tile of pixels follow each other, so that CTAs that run at once share its input in the L2 cache.
    DEVICE static Work work_at(const Problem& p, int index) {
        int tile = index / p.splits, split = index % p.splits;
        int pixel_tile = tile / filter_tiles(p), first_filter = tile % filter_tiles(p) * kFilters;
        return {tile, pixel_tile, first_filter, p.tiles.first(pixel_tile), split, first_slice(p, split)};
    }
};

// What a consumer warpgroup is.
struct Consumer {
    int index, thread, warp;

    DEVICE explicit Consumer(int index)
        : index(index), thread(thread_index() % kWarpgroup), warp(thread_index() % kWarpgroup / 32) {}
    DEVICE void sync() const { named_barrier_sync(kFirstConsumerBarrier + index, kWarpgroup); }
    // Register 4 * j + 2 * half + i of row block b of an accumulator is this pixel, filter 8 * j + column() + i.
    DEVICE int pixel(int block, int half) const { return block * 64 + warp * 16 + half * 8 + lane_index() / 4; }
    DEVICE int column() const { return lane_index() % 4 * 2; }
};

template <class V>
struct Accumulators {
    float block[kRowBlocks][V::kAccumulators];
};

}  // namespace conv1x1
