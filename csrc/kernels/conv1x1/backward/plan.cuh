// conv1x1_backward: how the work is cut up, and where everything lies in shared memory.
//
// A block has all filters and channels, and every so-many-th tile of 128 pixels. Each consumer has 64 of a tile's
// pixels: their dz, their dx, and, in registers from its first tile to its last, the products of all its pixels.
#pragma once
#include "kernels/conv1x1/forward/plan.cuh"
#include "kernels/parts/gradient_of_norm.cuh"

namespace conv1x1_backward {

using namespace conv1x1;
using kernels::BnBackward;

constexpr int kMaxFilters = kSliceChannels, kFilterChunks = kMaxFilters / kChunkChannels;
constexpr int kMaxSlices = 4, kMaxChannels = kMaxSlices * kSliceChannels;
constexpr int kConsumerPixels = kTilePixels / kConsumers;
constexpr int kConsumerThreads = kConsumers * kWarpgroup, kConsumerWarps = kConsumers * kWarps;
constexpr int kAllConsumersBarrier = kFirstConsumerBarrier + kConsumers;
constexpr int kAccumulators = kSliceChannels / 2;  // registers of a thread for 64 x 64 elements

struct BackwardArguments {
    Tiles tiles;
    int channels, filters;
    BnBackward norm;
    bool rectified, has_skip, has_skip_out;
    float* partials;  // (blocks, K, C)

    HOST_DEVICE int slices() const { return (channels + kSliceChannels - 1) / kSliceChannels; }
    HOST_DEVICE int stage_maps() const { return 1 + has_skip + has_skip_out; }
};

struct BackwardParameters {
    TensorMap g, z, weight, x, skip, skip_out, dx;
    BackwardArguments arguments;
};

template <ElementType kElementType>
struct BackwardVariant {
    static constexpr ElementType kType = kElementType;

    // ---- shared memory, from smem_base() on ----
    //
    //   weights                                       4 x  8 KB
    //   g, z: only until dz is made                       32 KB
    //   dz                                                16 KB
    //   stages: 64 channels of x, skip and skip_out   3 x 48 KB     dx takes the place of x

    static constexpr int kWeightSliceBytes = kMaxFilters * kPixelBytes;  // 64 channels
    static constexpr int kStageBytes = 3 * kSliceBytes;
    static constexpr int kStages = 3;
    static constexpr int kGradientAt = kMaxSlices * kWeightSliceBytes;
    static constexpr int kDzAt = kGradientAt + 2 * kSliceBytes;
    static constexpr int kStagesAt = kDzAt + kSliceBytes;
    static constexpr int kBarriersAt = kStagesAt + kStages * kStageBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * (3 + 3 * kStages);
    static_assert(kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress weights(int slice) { return smem_base() + slice * kWeightSliceBytes; }
    DEVICE static SmemAddress g() { return smem_base() + kGradientAt; }
    DEVICE static SmemAddress z() { return g() + kSliceBytes; }
    DEVICE static SmemAddress dz() { return smem_base() + kDzAt; }
    DEVICE static SmemAddress x(int stage) { return smem_base() + kStagesAt + stage * kStageBytes; }
    DEVICE static SmemAddress skip(int stage) { return x(stage) + kSliceBytes; }
    DEVICE static SmemAddress skip_out(int stage) { return skip(stage) + kSliceBytes; }

    // Products of the second consumer, 16 bytes a thread at a time, in the end: where weights, g and z were.
    static_assert(kDzAt >= kMaxSlices * kAccumulators * 4 * kWarpgroup);
    DEVICE static SmemAddress products(int slice, int four, int thread) {
        return smem_base() + ((slice * kAccumulators / 4 + four) * kWarpgroup + thread) * 16;
    }

    DEVICE static SmemAddress weights_full() { return smem_base() + kBarriersAt; }
    DEVICE static SmemAddress gradient_full() { return weights_full() + 8; }
    DEVICE static SmemAddress gradient_empty() { return weights_full() + 16; }
    DEVICE static SmemAddress full(int stage) { return weights_full() + 8 * (3 + stage); }
    DEVICE static SmemAddress finished(int stage) { return full(kStages + stage); }
    DEVICE static SmemAddress empty(int stage) { return full(2 * kStages + stage); }
};

}  // namespace conv1x1_backward
