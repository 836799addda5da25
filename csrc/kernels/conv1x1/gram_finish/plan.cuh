// conv1x1_gram_finish: how the work is cut up, and where everything lies in shared memory.
#pragma once
#include "kernels/parts/centered_activations.cuh"
#include "kernels/parts/pixel_sums.cuh"
#include "kernels/parts/pixel_tiles.cuh"

namespace conv1x1_gram_finish {

using namespace pixels;
using activations::Norm;
using activations::Prologue;

constexpr int kSteps = kSliceChannels / 16;               // wgmmas of k = 16 a slice
constexpr int kRowBlocks = kTilePixels / 64;              // wgmmas of M = 64 a tile
constexpr int kParts = 2;                                 // of the quadratic: leading and trailing bits
constexpr int kPartBytes = kSliceChannels * kPixelBytes;  // 64 channels by 64 columns

constexpr int kConsumers = 2;  // warpgroups, each with a tile of pixels of its own
constexpr int kConsumerThreads = kConsumers * kWarpgroup;
constexpr int kConsumerWarps = kConsumers * kWarps;
constexpr int kThreads = kWarpgroup + kConsumerThreads;
constexpr int kFirstConsumerBarrier = 1;  // named; 0 is cta_sync
constexpr int kConsumersBarrier = kFirstConsumerBarrier + kConsumers;

struct Problem {
    Tiles tiles;
    int channels;

    HOST_DEVICE int tile_pairs() const { return (tiles.count() + kConsumers - 1) / kConsumers; }
    HOST_DEVICE int slices() const { return (channels + kSliceChannels - 1) / kSliceChannels; }
};

struct Arguments {
    Problem problem;
    Prologue prologue;
    const float* center;      // (C,)
    const float* constant;    // (C,)
    const float* below_mean;  // (C,)
    float* partials;          // (slots, 2, C): sums of g and of g * (z - below_mean)
};

struct Parameters {
    TensorMap z, t, quadratic, g;
    Arguments arguments;
};

// With `kColumns` of the C columns of the product a block: N of every wgmma.
template <ElementType kElementType, int kColumnCount>
struct Variant {
    static constexpr ElementType kType = kElementType;
    static constexpr int kColumns = kColumnCount, kColumnSlices = kColumns / kSliceChannels;
    static constexpr int kAccumulators = kColumns / 2;  // registers of a thread for 64 pixels
    using Sums = ThreadSums<kConsumerThreads, kSliceChannels / kChunkChannels>;

    // ---- shared memory, from smem_base() on ----

    // A stage is one slice of both tiles' z, and beside it that slice's rows of the quadratic, or the same slice of t.
    static constexpr int kTilesBytes = kConsumers * kSliceBytes;
    static constexpr int kQuadraticBytes = kColumnSlices * kParts * kPartBytes;
    static constexpr int kStageBytes = 2 * kTilesBytes;
    static constexpr int kStages = 3;
    static constexpr int kSumsAt = kStages * kStageBytes;
    static constexpr int kBarriersAt = kSumsAt + Sums::kBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * 2 * kStages;
    static_assert(kQuadraticBytes <= kTilesBytes && kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress z(int stage, int consumer) {
        return smem_base() + stage * kStageBytes + consumer * kSliceBytes;
    }
    DEVICE static SmemAddress t(int stage, int consumer) { return z(stage, kConsumers + consumer); }
    // Both parts of 64 columns.
    DEVICE static SmemAddress quadratic(int stage, int column_slice) {
        return z(stage, kConsumers) + column_slice * kParts * kPartBytes;
    }
    DEVICE static Sums sums() { return {smem_base() + kSumsAt, kConsumersBarrier}; }
    DEVICE static SmemAddress full(int stage) { return smem_base() + kBarriersAt + 8 * stage; }
    DEVICE static SmemAddress empty(int stage) { return full(kStages + stage); }

    // ---- work ----

    HOST_DEVICE static int column_blocks(const Problem& p) { return (p.channels + kColumns - 1) / kColumns; }
};

// A CTA stays with its columns, over every `slots`-th pair of tiles. CTAs with the other columns of the same pixels are
// neighbours in the grid, so that all but the first find z in the L2 cache.
struct Share {
    int first_column, slot, slots;
};

template <class V>
DEVICE Share share_of(const Problem& p) {
    int blocks = V::column_blocks(p);
    return {block_index() % blocks * V::kColumns, block_index() / blocks, block_count() / blocks};
}

// What a consumer warpgroup is.
struct Consumer {
    int index, thread, warp;

    DEVICE explicit Consumer(int index)
        : index(index), thread(thread_index() % kWarpgroup), warp(thread_index() % kWarpgroup / 32) {}
    DEVICE void sync() const { named_barrier_sync(kFirstConsumerBarrier + index, kWarpgroup); }
};

// Frees the stage of `use`, of which this warp has done all that it does with it.
template <class V>
DEVICE void release(int use) {
    if (lane_index() == 0) mbarrier_arrive(V::empty(turn<V::kStages>(use).slot));
}

template <class V>
struct Accumulators {
    float block[kRowBlocks][V::kAccumulators];
};

}  // namespace conv1x1_gram_finish
