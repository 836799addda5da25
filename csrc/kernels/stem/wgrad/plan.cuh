// stem_wgrad: how the work is cut up, and where everything lies in shared memory.
//
// A block has every `splits`-th tile of outputs. The products of all filters and all taps, 64 x 7 x 8 x 4, stay in the
// registers of seven warps, one for each row of the filter, from its first tile to its last.
#pragma once
#include "kernels/parts/gradient_of_norm.cuh"
#include "kernels/stem/image.cuh"

namespace stem_wgrad {

using namespace stem;
using kernels::BnBackward;

constexpr int kMultiplierWarps = kFilterSize;
constexpr int kTmaWarp = kLoaders / 32;  // after the warps that make both operands
constexpr int kFirstMultiplierWarp = kTmaWarp + 1;
constexpr int kThreads = 32 * (kFirstMultiplierWarp + kMultiplierWarps);

struct Plan {
    static constexpr int kSlotBytes = (2 * kSliceBytes + kHaloBytes + 1023) / 1024 * 1024;
    static constexpr int kSlots = 5;
    static constexpr int kBarriersAt = kSlots * kSlotBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * 3 * kSlots;
    static_assert(kSharedBytes <= 227 * 1024);

    // g, later dz; z; and the halo of the images.
    DEVICE static SmemAddress gradient(int slot) { return smem_base() + slot * kSlotBytes; }
    DEVICE static SmemAddress z(int slot) { return gradient(slot) + kSliceBytes; }
    DEVICE static SmemAddress halo(int slot) { return z(slot) + kSliceBytes; }

    DEVICE static SmemAddress loaded(int slot) { return smem_base() + kBarriersAt + 8 * slot; }
    DEVICE static SmemAddress full(int slot) { return loaded(kSlots + slot); }
    DEVICE static SmemAddress empty(int slot) { return loaded(2 * kSlots + slot); }
};

struct Parameters {
    TensorMap g, z;
    Tiles tiles;
    Images images;
    BnBackward norm;
    float* partials;  // (blocks, 64, 7, 7, 3)
};

}  // namespace stem_wgrad
