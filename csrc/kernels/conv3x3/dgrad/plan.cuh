// conv3x3_halo_dgrad: how the work is cut up, and where everything lies in shared memory.
//
// At stride 1 the gradient of a convolution's input is a convolution of dz with the filters turned around: the tiles,
// halos and taps of conv3x3_halo. At stride 2 the pixels of dx fall into four phases by the parity of their row and
// column, each of which is a convolution of the same dz with 1, 2, 2 or 4 of the taps. A tile is then one of pixels of
// dz: pixel (i, j) gives the pixels (2 * i + row, 2 * j + column) of phase (row, column).
#pragma once
#include "kernels/conv3x3/forward/plan.cuh"

namespace conv3x3_halo_dgrad {

using namespace conv3x3_halo;

constexpr int kMaxPhases = 4;

struct DgradChoice {
    Choice tile;
    int z_slots;  // slices of z in shared memory, each only until dz is made of it
};

// Every channel of dx at once; at stride 2 a tile's slices stay while the phases pass by. A block below brings three
// more maps into the epilogue, whose rows then come in smaller portions.
constexpr DgradChoice choose_dgrad(int channels, int filters, int stride, bool block_below) {
    int rows = block_below ? 4 : 8;
    if (filters > channels) {
        if (channels == 64) return {{8, 1, 4, 6, rows}, 2};
        if (channels == 128) return {{16, 1, 4, 4, rows}, 1};
        return {{8, 2, 8, 4, rows}, 1};
    }
    if (channels == 64) return {{16, 1, 4, 0, block_below ? 8 : 16}, 2};
    if (stride == 1) {
        if (channels == 128) return {{32, 1, 2, 3, rows}, 1};
        if (channels == 256) return {{16, 2, 3, 5, rows}, block_below ? 1 : 2};
        return {{8, 4, 4, 5, rows}, 3};
    }
    if (channels == 128) return {{16, 1, 4, 4, rows}, 2};
    if (channels == 256) return {{16, 2, 4, 5, rows}, 1};
    return {{8, 4, 8, 4, rows}, 2};
}

// What conv3x3_halo's parts are told: dz as the input of a convolution of stride 1, dx as its output.
template <int kChannels, int kFilters, DgradChoice kChosen>
using DgradBase = Plan<kFilters, kChannels, 1, kChosen.tile>;

template <int kChannelCount, int kFilterCount, int kConvStride, bool kHasBlockBelow,
          DgradChoice kChosen = choose_dgrad(kChannelCount, kFilterCount, kConvStride, kHasBlockBelow)>
struct DgradPlan : DgradBase<kChannelCount, kFilterCount, kChosen> {
    using Base = DgradBase<kChannelCount, kFilterCount, kChosen>;
    static constexpr int kDxChannels = Base::kFilters, kDzChannels = Base::kChannels;
    static constexpr bool kBlockBelow = kHasBlockBelow;
    static constexpr int kPhases = kConvStride * kConvStride;
    static constexpr int kZSlots = kChosen.z_slots;
    static_assert(Base::kPasses == 1);
    static_assert(kPhases == 1 || Base::kSlots >= Base::kSlices, "every phase finds every slice in its slot");

    // Of the 3 x 168: what weights in registers leave is scarce, and elsewhere a producer needs more than
    // conv3x3_halo's for the addresses of two maps.
    static constexpr int kProducerRegisters = Base::kWeightsInRegisters ? 40 : 56;
    static constexpr int kConsumerRegisters = Base::kWeightsInRegisters ? 232 : 224;
    static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 3 * 168);

    static constexpr int kZAt = (Base::kSharedBytes + 127) / 128 * 128;
    static constexpr int kBlockAt = kZAt + kZSlots * Base::kSliceBytes;  // the block's maps, of each consumer
    static constexpr int kZEmptyAt = kBlockAt + (kBlockBelow ? 3 * kConsumers * Base::kStagedBytes : 0);
    static constexpr int kSharedBytes = kZEmptyAt + 8 * kZSlots;
    static_assert(kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress z_slice(int slot) { return smem_base() + kZAt + slot * Base::kSliceBytes; }
    DEVICE static SmemAddress skip(int consumer) { return smem_base() + kBlockAt + consumer * Base::kStagedBytes; }
    DEVICE static SmemAddress skip_out(int consumer) { return skip(kConsumers + consumer); }
    DEVICE static SmemAddress below_out(int consumer) { return skip(2 * kConsumers + consumer); }
    DEVICE static SmemAddress z_empty(int slot) { return smem_base() + kZEmptyAt + 8 * slot; }
    // Of one channel of dx, over the tiles of one set: the sums of dx and of dx * (below_z - below_mean).
    DEVICE static SmemAddress sums(int set, int channel) { return Base::moments(set, channel); }

    // ---- a consumer's part of a tile: of its filters, or of its rows ----

    DEVICE static int first_channel(int consumer) { return Base::kFilterConsumers > 1 ? consumer * kFilterTile : 0; }
    DEVICE static int first_row(int consumer) {
        return Base::kWholeRows > Base::kTileRows ? consumer * Base::kTileRows : 0;
    }

    // ---- phases and their taps ----

    DEVICE static int phase_row(int phase) { return phase / 2; }
    DEVICE static int phase_column(int phase) { return phase % 2; }

    DEVICE static int tap_count(int phase) {
        return kPhases == 1 ? kTaps : (1 + phase_row(phase)) * (1 + phase_column(phase));
    }

    // Tap `i` of a phase, of the filters turned around: dx (h, w) gets it of what stands at (h + r - 1, w + s - 1) in
    // dz with a zero between any two of its pixels.
    DEVICE static int tap(int phase, int i) {
        if (kPhases == 1) return i;
        int across = 1 + phase_column(phase);
        int row = phase_row(phase) ? 2 * (i / across) : 1, column = phase_column(phase) ? 2 * (i % across) : 1;
        return 3 * row + column;
    }

    // Where it finds the first pixel of the tile's halo, from the halo's begin on.
    DEVICE static int pixels_offset(int tap) {
        if (kPhases == 1) return Base::tap_offset(tap);
        return Base::tap_offset(3 * (1 + tap / 3 / 2) + 1 + tap % 3 / 2);
    }
};

// A phase of dx, or at stride 1 dx itself.
struct Extents {
    int height, width;

    DEVICE bool empty() const { return height == 0 || width == 0; }
};

HOST_DEVICE inline Extents phase_extents(int height, int width, int phases, int phase) {
    if (phases == 1) return {height, width};
    return {(height + 1 - phase / 2) / 2, (width + 1 - phase % 2) / 2};
}

}  // namespace conv3x3_halo_dgrad
