// conv1x1_wgrad: how the work is cut up, and where everything lies in shared memory.
//
// A block has 64 or 128 filters and 256 channels, whose products stay in the registers of two consumers from its first
// tile of pixels to its last, and every `splits`-th tile of 128 pixels. Of 128 filters each consumer has 64; 64 they
// both have, and each half of the channels.
#pragma once
#include "kernels/parts/gradient_of_norm.cuh"
#include "kernels/parts/pixel_tiles.cuh"

namespace conv1x1_wgrad {

using namespace pixels;
using kernels::BnBackward;

constexpr int kTileSlices = 4, kTileChannels = kTileSlices * kSliceChannels;
constexpr int kSteps = kTilePixels / 16;  // wgmmas of k = 16 a tile

constexpr int kConsumers = 2;
constexpr int kConsumerThreads = kConsumers * kWarpgroup, kConsumerWarps = kConsumers * kWarps;
constexpr int kThreads = kWarpgroup + kConsumerThreads;
constexpr int kConsumerBarrier = 1;  // named; 0 is cta_sync

struct WgradArguments {
    Tiles tiles;  // of g
    int channels, filters, stride;
    int splits;
    BnBackward norm;
    const float* in_scale;  // (C,) the prologue of x; null: none
    const float* in_shift;  // (C,)
    float* partials;        // (splits, K, C)
};

struct WgradParameters {
    TensorMap g, z, x;
    WgradArguments arguments;
};

template <ElementType kElementType, int kFilterCount>
struct WgradVariant {
    static constexpr ElementType kType = kElementType;
    static constexpr int kFilters = kFilterCount, kFilterSlices = kFilters / kSliceChannels;
    static_assert(kFilterSlices == 1 || kFilterSlices == kConsumers);
    static constexpr int kConsumerChannels = kTileChannels * kFilterSlices / kConsumers;  // N of a wgmma
    static constexpr int kProducts = kConsumerChannels / 2;                               // registers of a thread

    // ---- shared memory, from smem_base() on ----

    static constexpr int kGradientBytes = 2 * kFilterSlices * kSliceBytes;  // g and z
    static constexpr int kInputBytes = kTileSlices * kSliceBytes;
    static constexpr int kGradientSlots = 2 / kFilterSlices;  // only until dz is in registers
    static constexpr int kInputSlots = 2;
    static constexpr int kInputAt = kGradientSlots * kGradientBytes;
    static constexpr int kBarriersAt = kInputAt + kInputSlots * kInputBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * 2 * (kGradientSlots + kInputSlots);
    static_assert(kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress g(int slot, int filter_slice) {
        return smem_base() + slot * kGradientBytes + filter_slice * kSliceBytes;
    }
    DEVICE static SmemAddress z(int slot, int filter_slice) { return g(slot, kFilterSlices + filter_slice); }
    DEVICE static SmemAddress input(int slot, int channel_slice) {
        return smem_base() + kInputAt + slot * kInputBytes + channel_slice * kSliceBytes;
    }

    DEVICE static SmemAddress gradient_full(int slot) { return smem_base() + kBarriersAt + 8 * slot; }
    DEVICE static SmemAddress gradient_empty(int slot) { return gradient_full(kGradientSlots + slot); }
    DEVICE static SmemAddress input_full(int slot) { return gradient_full(2 * kGradientSlots + slot); }
    DEVICE static SmemAddress input_empty(int slot) { return input_full(kInputSlots + slot); }

    // ---- work ----

    HOST_DEVICE static int channel_tiles(const WgradArguments& p) {
        return (p.channels + kTileChannels - 1) / kTileChannels;
    }
    HOST_DEVICE static int products_tiles(const WgradArguments& p) {
        return (p.filters + kFilters - 1) / kFilters * channel_tiles(p);
    }
    // Which of a block's slices of filters, and from which of its slices of channels on, is a consumer's.
    DEVICE static int filter_slice(int consumer) { return kFilterSlices == 1 ? 0 : consumer; }
    DEVICE static int channel_slice(int consumer) {
        return kFilterSlices == 1 ? consumer * kConsumerChannels / kSliceChannels : 0;
    }
};

struct Share {
    int first_filter, first_channel, split;
};

// The products of the same pixels follow each other, so that CTAs that run at once share the maps in the L2 cache.
template <class V>
DEVICE Share share_of(const WgradArguments& p) {
    int tile = block_index() % V::products_tiles(p);
    return {tile / V::channel_tiles(p) * V::kFilters, tile % V::channel_tiles(p) * kTileChannels,
            block_index() / V::products_tiles(p)};
}

}  // namespace conv1x1_wgrad
