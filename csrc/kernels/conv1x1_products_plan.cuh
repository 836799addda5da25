// conv1x1_products: how the work is cut up, and where everything lies in shared memory.
#pragma once
#include "device/gemm.cuh"
#include "kernels/pixel_tiles.cuh"

namespace conv1x1_products {

using namespace pixels;

constexpr int kMaxFilters = 256;
constexpr int kPairFilters = 2 * kSliceChannels;  // a slice for each consumer
constexpr int kPairs = kMaxFilters / kPairFilters;
constexpr uint32_t kAtomBytes = 8 * kPixelBytes;  // eight rows of the swizzle
constexpr uint32_t kStepRowsBytes = 16 * kPixelBytes;

constexpr int kWarpgroup = 128, kWarps = kWarpgroup / 32;
constexpr int kConsumers = 2;
constexpr int kConsumerThreads = kConsumers * kWarpgroup;
constexpr int kConsumerWarps = kConsumers * kWarps;
constexpr int kThreads = kWarpgroup + kConsumerThreads;
constexpr int kConsumerBarrier = 1;  // named; 0 is cta_sync

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
    float* partials;  // (slots, K * C + K): products, then the sums of g, of one block for each of its channel blocks
};

struct Parameters {
    TensorMap grad, out, z, weight, t;
    Arguments arguments;
};

// Of `kChannels` of the C channels at a time: N of every wgmma.
template <ElementType kElementType, int kChannelCount>
struct Variant {
    static constexpr ElementType kType = kElementType;
    static constexpr int kChannels = kChannelCount, kChannelSlices = kChannels / kSliceChannels;
    static constexpr int kAccumulators = kChannels / 2;

    // ---- shared memory, from smem_base() on ----

    static constexpr int kWeightSliceBytes = kMaxFilters * kPixelBytes;  // 64 channels of every filter
    static constexpr int kActivationBytes = kChannelSlices * kSliceBytes;
    static constexpr int kStageBytes = 2 * kSliceBytes;  // 64 filters of grad and of out
    static constexpr int kActivationSlots = 2;
    static constexpr int kControlBytes = 256;  // barriers
    static constexpr int kActivationsAt = kChannelSlices * kWeightSliceBytes;
    static constexpr int kStagesAt = kActivationsAt + kActivationSlots * kActivationBytes;
    static constexpr int kStages = (227 * 1024 - kControlBytes - 4 * kMaxFilters - kStagesAt) / kStageBytes;
    static_assert(kStages >= kConsumers);
    static constexpr int kSumsAt = kStagesAt + kStages * kStageBytes;
    static constexpr int kBarriersAt = kSumsAt + 4 * kMaxFilters;
    static constexpr int kSharedBytes = kBarriersAt + 8 * (1 + 2 * kStages + 3 * kActivationSlots);
    static_assert(kSharedBytes - kBarriersAt <= kControlBytes && kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress weights(int channel_slice) { return smem_base() + channel_slice * kWeightSliceBytes; }
    DEVICE static SmemAddress activations(int slot) { return smem_base() + kActivationsAt + slot * kActivationBytes; }
    DEVICE static SmemAddress gradient(int stage) { return smem_base() + kStagesAt + stage * kStageBytes; }
    DEVICE static SmemAddress output(int stage) { return gradient(stage) + kSliceBytes; }
    DEVICE static SmemAddress sum(int filter) { return smem_base() + kSumsAt + 4 * filter; }

    DEVICE static SmemAddress weights_full() { return smem_base() + kBarriersAt; }
    DEVICE static SmemAddress full(int stage) { return weights_full() + 8 * (1 + stage); }
    DEVICE static SmemAddress empty(int stage) { return full(kStages + stage); }
    DEVICE static SmemAddress z_full(int slot) { return full(2 * kStages + slot); }
    DEVICE static SmemAddress t_full(int slot) { return z_full(kActivationSlots + slot); }
    DEVICE static SmemAddress z_empty(int slot) { return z_full(2 * kActivationSlots + slot); }

    // ---- work ----

    HOST_DEVICE static int channel_blocks(const Problem& p) { return (p.channels + kChannels - 1) / kChannels; }
};

// A block stays with its channels, whose products it accumulates over every `slots`-th tile of pixels.
struct Share {
    int first_channel, slot, slots;
};

template <class V>
DEVICE Share share_of(const Problem& p) {
    int blocks = V::channel_blocks(p);
    return {block_index() % blocks * V::kChannels, block_index() / blocks, block_count() / blocks};
}

}  // namespace conv1x1_products
