// stem: how the work is cut up, and where everything lies in shared memory.
#pragma once
#include "kernels/conv1x1/forward/plan.cuh"
#include "kernels/stem/image.cuh"

namespace stem {

using conv1x1::Accumulators;
using conv1x1::Arguments;
using conv1x1::Consumer;
using conv1x1::Epilogue;
using conv1x1::kConsumers;
using conv1x1::kRowBlocks;
using conv1x1::kThreads;
using conv1x1::kWarpgroup;
using conv1x1::kWarps;
using conv1x1::Work;

static_assert(kLoaders == kWarpgroup);

// The epilogue is conv1x1's: a tile of 128 pixels by 64 filters leaves in its way. The maps of its operands are unused.
struct Parameters : conv1x1::Parameters {
    Images images;
    const uint16_t* filters;  // (64, 7, 7, 3)
};

// One instantiation.
template <ElementType kElementType, Epilogue kEpilogueKind>
struct Variant {
    static constexpr ElementType kType = kElementType;
    static constexpr Epilogue kEpilogue = kEpilogueKind;
    static constexpr int kFilters = stem::kFilters;
    static constexpr int kAccumulators = kFilters / 2;  // registers of a thread for 64 pixels

    // ---- shared memory, from smem_base() on ----

    static constexpr int kFilterRowBytes = kTaps * kImagePixelBytes;  // of one filter: the width of the 64-byte swizzle
    static constexpr int kFilterRowsBytes = kFilters * kFilterRowBytes;
    static constexpr int kOutputBytes = kSliceBytes;  // of one consumer
    static constexpr int kMomentBytes = kWarps * (kFilters + 2) * 8;
    static constexpr int kSlots = 4;          // of halos
    static_assert(kSlots % kConsumers == 0);  // a slot is always the same consumer's: see consume()

    static constexpr int kOutputAt = kFilterSize * kFilterRowsBytes;
    static_assert(kOutputAt % 1024 == 0);
    static constexpr int kHalosAt = kOutputAt + kConsumers * kOutputBytes;
    static constexpr int kMomentsAt = kHalosAt + kSlots * kHaloBytes;
    static constexpr int kBarriersAt = kMomentsAt + kConsumers * kMomentBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kSlots + kConsumers);
    static_assert(kSharedBytes <= 227 * 1024);

    // One row of every filter: K-major, 8 taps of 4 channels.
    DEVICE static SmemAddress filter_rows(int row) { return smem_base() + row * kFilterRowsBytes; }
    DEVICE static SmemAddress output(int consumer, int) { return smem_base() + kOutputAt + consumer * kOutputBytes; }
    DEVICE static SmemAddress halo(int slot) { return smem_base() + kHalosAt + slot * kHaloBytes; }
    // A warp's (mean, M2) of each filter, and the count of them all.
    DEVICE static SmemAddress moments(int consumer, int warp, int filter) {
        return smem_base() + kMomentsAt + consumer * kMomentBytes + (warp * kFilters + filter) * 8;
    }
    DEVICE static SmemAddress count(int consumer, int warp) { return moments(consumer, kWarps, 2 * warp); }

    DEVICE static SmemAddress full(int slot) { return smem_base() + kBarriersAt + 8 * slot; }
    DEVICE static SmemAddress empty(int slot) { return full(kSlots + slot); }
    DEVICE static SmemAddress residual_full(int consumer) { return full(2 * kSlots + consumer); }

    DEVICE static bool has_residual(const Arguments& arguments) {
        return kEpilogue == Epilogue::kScaleShiftAct && arguments.has_residual;
    }
};

}  // namespace stem
