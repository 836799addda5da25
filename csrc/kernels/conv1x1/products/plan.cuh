// conv1x1_products: how the work is cut up, and where everything lies in shared memory.
#pragma once
#include "device/gemm.cuh"
#include "kernels/parts/pixel_tiles.cuh"

namespace conv1x1_products {

using namespace pixels;

constexpr int kBlockFilters = 256;
constexpr int kMaxRanks = 8;                      // blocks of a cluster that every GPU of compute capability 9.0 takes
constexpr int kPairFilters = 2 * kSliceChannels;  // a slice for each consumer
constexpr int kPairs = kBlockFilters / kPairFilters;

constexpr int kConsumers = 2;
constexpr int kConsumerThreads = kConsumers * kWarpgroup;
constexpr int kConsumerWarps = kConsumers * kWarps;
constexpr int kThreads = kWarpgroup + kConsumerThreads;
constexpr int kConsumerBarrier = 1;  // named; 0 is cta_sync

// t of 16 pixels and 32 channels as its warp holds it: what ranks of a cluster exchange at a time.
constexpr int kPieceAccumulators = 16, kPieceBytes = 32 * 4 * kPieceAccumulators;
constexpr int kExchangeSlots = 2, kExchangeBytes = kConsumerWarps * kPieceBytes;

struct Problem {
    Tiles tiles;  // of grad
    int channels, filters, stride;
};

struct Arguments {
    Problem problem;
    const float* in_scale;  // (C,), or null: no prologue
    const float* in_shift;  // (C,)
    const float* center;    // (C,)
    bool has_out;
    float* partials;  // (slots, K * C + K): products, then the sums of g, of a cluster for each of its channel blocks
};

struct Parameters {
    TensorMap grad, out, z, weight, t;
    Arguments arguments;
};

// Of `kChannels` of the C channels at a time: N of every wgmma. Up to 256 filters a block has all of them; of more,
// each block of a cluster has 256, and a second slot of activations makes room for the exchange of t.
//
//                                  128 channels   in clusters
//   weights, 256 filters                  64 KB         64 KB
//   activations                        2 x 32 KB         32 KB
//   stages, 64 filters of grad, out    3 x 32 KB     3 x 32 KB
//   exchange: pieces of t, and t                     2 x 16 KB
template <ElementType kElementType, int kChannelCount, bool kInClusters>
struct Variant {
    static constexpr ElementType kType = kElementType;
    static constexpr bool kClusters = kInClusters;
    static constexpr int kChannels = kChannelCount, kChannelSlices = kChannels / kSliceChannels;
    static constexpr int kAccumulators = kChannels / 2;

    // ---- shared memory, from smem_base() on ----

    static constexpr int kWeightSliceBytes = kBlockFilters * kPixelBytes;  // 64 channels of every filter
    static constexpr int kActivationBytes = kChannelSlices * kSliceBytes;
    static constexpr int kStageBytes = 2 * kSliceBytes;  // 64 filters of grad and of out
    static constexpr int kActivationSlots = kClusters ? 1 : 2;
    static constexpr int kControlBytes = 256;  // barriers
    static constexpr int kActivationsAt = kChannelSlices * kWeightSliceBytes;
    static constexpr int kExchangeAt = kActivationsAt + kActivationSlots * kActivationBytes;
    static constexpr int kStagesAt = kExchangeAt + (kClusters ? kExchangeSlots * kExchangeBytes : 0);
    static constexpr int kStages = (227 * 1024 - kControlBytes - 4 * kBlockFilters - kStagesAt) / kStageBytes;
    static_assert(kStages >= kConsumers);
    static constexpr int kSumsAt = kStagesAt + kStages * kStageBytes;
    static constexpr int kBarriersAt = kSumsAt + 4 * kBlockFilters;
    static constexpr int kExchangeBarriers = kClusters ? 1 + kExchangeSlots * kConsumerWarps : 0;
    static constexpr int kSharedBytes = kBarriersAt + 8 * (1 + 2 * kStages + 3 * kActivationSlots + kExchangeBarriers);
    static_assert(kSharedBytes - kBarriersAt <= kControlBytes && kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress weights(int channel_slice) { return smem_base() + channel_slice * kWeightSliceBytes; }
    DEVICE static SmemAddress activations(int slot) { return smem_base() + kActivationsAt + slot * kActivationBytes; }
    // What the `warp`-th of the warps that own pixels has from `sender`.
    DEVICE static SmemAddress exchange(int slot, int sender, int ranks, int warp) {
        return smem_base() + kExchangeAt + slot * kExchangeBytes +
               (sender * (kConsumerWarps / ranks) + warp) * kPieceBytes;
    }
    DEVICE static SmemAddress gradient(int stage) { return smem_base() + kStagesAt + stage * kStageBytes; }
    DEVICE static SmemAddress output(int stage) { return gradient(stage) + kSliceBytes; }
    DEVICE static SmemAddress sum(int filter) { return smem_base() + kSumsAt + 4 * filter; }

    DEVICE static SmemAddress weights_full() { return smem_base() + kBarriersAt; }
    DEVICE static SmemAddress full(int stage) { return weights_full() + 8 * (1 + stage); }
    DEVICE static SmemAddress empty(int stage) { return full(kStages + stage); }
    DEVICE static SmemAddress z_full(int slot) { return full(2 * kStages + slot); }
    DEVICE static SmemAddress t_full(int slot) { return z_full(kActivationSlots + slot); }
    DEVICE static SmemAddress z_empty(int slot) { return z_full(2 * kActivationSlots + slot); }
    DEVICE static SmemAddress t_empty() { return z_full(3 * kActivationSlots); }
    DEVICE static SmemAddress exchanged(int slot, int warp) {
        return t_empty() + 8 * (1 + slot * kConsumerWarps + warp);
    }

    // 64 channels of one rank's pixels of t: where its activations were, or what it would have sent itself.
    DEVICE static SmemAddress t_slice(int slot, int slice, int rank, int ranks) {
        if constexpr (kClusters) return exchange(slice, rank, ranks, 0);
        return activations(slot) + slice * kSliceBytes;
    }

    // ---- work ----

    HOST_DEVICE static int channel_blocks(const Problem& p) { return (p.channels + kChannels - 1) / kChannels; }
};

// A cluster stays with its channels, whose products it accumulates over every `slots`-th tile of pixels. Clusters of
// the same tile are neighbours: all but the first find grad in L2.
struct Share {
    int first_channel, slot, slots;
    int first_filter, rank, ranks;
};

template <class V>
DEVICE Share share_of(const Problem& p) {
    int rank = 0, ranks = 1;
    if constexpr (V::kClusters) rank = cluster_rank(), ranks = cluster_size();
    int cluster = block_index() / ranks, blocks = V::channel_blocks(p);
    return {cluster % blocks * V::kChannels,
            cluster / blocks,
            block_count() / ranks / blocks,
            rank * kBlockFilters,
            rank,
            ranks};
}

}  // namespace conv1x1_products
