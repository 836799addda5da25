// conv1x1_dgrad: how the work is cut up, and where everything lies in shared memory.
//
// Where the convolution or the shortcut beside it has stride 2, the pixels of dx fall into four phases by the parity of
// their row and column, each a map of its own to TMA: the convolution's product, or the skip, or both arrive in the
// first of them alone. The others are tiles without a product, so that one kernel writes every pixel of dx, once.
#pragma once
#include "kernels/conv1x1/forward/plan.cuh"
#include "kernels/parts/gradient_of_norm.cuh"

namespace conv1x1_dgrad {

using namespace conv1x1;
using kernels::BnBackward;

constexpr int kMaxPhases = 4;
constexpr int kTileSlices = 2, kTileChannels = kTileSlices * kSliceChannels;  // of dx
constexpr int kSumChannels = 32;                                              // whose sums the warps merge at a time

struct Phase {
    Tiles tiles;    // its own extents, in the boxes of the first phase
    int slices;     // of 64 filters; 0: no product
    bool has_skip;  // if dx has one
};

// The maps that the epilogue reads, numbered among those that are there; -1: not there.
struct EpilogueMaps {
    int skip, skip_out, below_out, below_z;
    int count;
};

struct DgradArguments {
    Phase phase[kMaxPhases];
    int phases, channels, filters;
    BnBackward norm;
    EpilogueMaps maps;
    const float *below_scale, *below_shift;  // (C,) or null: no mask by them
    const float* below_mean;                 // (C,), where there is a below_z
    float* partials;                         // (phases * tiles, 2, C), or null
};

struct PhaseMaps {
    TensorMap g, z, dx, skip, skip_out, below_out, below_z;
};

struct DgradParameters {
    TensorMap weights;
    PhaseMaps maps[kMaxPhases];
    DgradArguments arguments;
};

// ---- work ----

// 128 pixels of one phase by 128 channels of dx.
struct DgradWork {
    int phase, first_channel;
    int row;  // of the partials
    Box pixels;
};

HOST_DEVICE inline int channel_tiles(const DgradArguments& p) {
    return (p.channels + kTileChannels - 1) / kTileChannels;
}
HOST_DEVICE inline int partial_rows(const DgradArguments& p) { return p.phases * p.phase[0].tiles.count(); }
HOST_DEVICE inline int work_count(const DgradArguments& p) { return partial_rows(p) * channel_tiles(p); }

// The channels of the same pixels follow each other, so that CTAs that run at once share g and z in the L2 cache.
DEVICE DgradWork work_at(const DgradArguments& p, int index) {
    int row = index / channel_tiles(p), tiles = p.phase[0].tiles.count();
    return {row / tiles, index % channel_tiles(p) * kTileChannels, row, p.phase[0].tiles.first(row % tiles)};
}

// Slices of the work, if there is that one.
DEVICE int slices_of(const DgradArguments& p, int index) {
    return index < work_count(p) ? p.phase[work_at(p, index).phase].slices : 0;
}

// One instantiation, as conv1x1's parts want to know it.
template <ElementType kElementType>
struct DgradVariant {
    static constexpr ElementType kType = kElementType;
    static constexpr int kAccumulators = kTileChannels / 2;  // registers of a thread for 64 pixels

    // ---- shared memory, from smem_base() on ----

    static constexpr int kWeightSliceBytes = kSliceChannels * kPixelBytes;  // 64 filters by 64 channels
    static constexpr int kStageBytes = 2 * kSliceBytes + kTileSlices * kWeightSliceBytes;
    static constexpr int kStages = 2;
    static constexpr int kBuffers = 4;  // of one consumer, 64 channels of one map each
    static constexpr int kSumBytes = kWarps * kSumChannels * 8;
    static constexpr int kBuffersAt = kStages * kStageBytes;
    static constexpr int kSumsAt = kBuffersAt + kConsumers * kBuffers * kSliceBytes;
    static constexpr int kBarriersAt = kSumsAt + kConsumers * kSumBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kStages + 2 * kConsumers);
    static_assert(kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress g(int stage) { return smem_base() + stage * kStageBytes; }
    DEVICE static SmemAddress z(int stage) { return g(stage) + kSliceBytes; }
    DEVICE static SmemAddress weights(int stage) { return z(stage) + kSliceBytes; }

    // With two maps or fewer, all channels of a tile find room at once; with more, 64 of them.
    DEVICE static int slices_at_once(const EpilogueMaps& maps) {
        return kTileSlices * maps.count <= kBuffers ? kTileSlices : 1;
    }
    // 64 channels of a map; of the first one, or of none, dx takes the place.
    DEVICE static SmemAddress buffer(int consumer, const EpilogueMaps& maps, int map, int slice) {
        int at_once = slices_at_once(maps);
        return smem_base() + kBuffersAt + (consumer * kBuffers + map * at_once + slice % at_once) * kSliceBytes;
    }
    // A warp's sums of dx and of dx * (below_z - below_mean).
    DEVICE static SmemAddress sums(int consumer, int warp, int channel) {
        return smem_base() + kSumsAt + consumer * kSumBytes + (warp * kSumChannels + channel) * 8;
    }

    DEVICE static SmemAddress full(int stage) { return smem_base() + kBarriersAt + 8 * stage; }
    DEVICE static SmemAddress empty(int stage) { return full(kStages + stage); }
    DEVICE static SmemAddress maps_full(int consumer) { return full(2 * kStages + consumer); }
    DEVICE static SmemAddress may_multiply(int consumer) { return maps_full(kConsumers + consumer); }
};

}  // namespace conv1x1_dgrad
