// bottleneck_inference, consumers: d[filter][pixel], 64 filters at once, in three products one after the other.
#pragma once
#include "device/gemm.cuh"
#include "kernels/bottleneck/plan.cuh"

namespace bottleneck_inference {

// A warp's share of the products that read a buffer is done; wgmma.wait_group speaks for the whole warp.
// A consumer's walk over the blocks of weights that lie in shared memory: 64 filters x 64 channels each.
template <class P>
class WeightBlocks {
  public:
    DEVICE explicit WeightBlocks(const Consumer<P>& consumer) : next_(consumer.filter_part), oldest_(next_) {
        if constexpr (P::kResident) mbarrier_wait(P::weights_full(0), 0);
    }
    DEVICE void begin_tile() {
        if constexpr (P::kResident) next_ = 0;
    }
    // The next block; it is there.
    DEVICE SmemAddress take() {
        if constexpr (P::kResident) {
            return P::weights(next_++);
        } else {
            Turn at = turn<P::kStages>(next_);
            mbarrier_wait(P::weights_full(at.slot), at.parity);
            next_ += P::kFilterParts;
            return P::weights(at.slot);
        }
    }
    // Of the products with the blocks taken so far, all but the last kInFlight are done.
    template <int kInFlight>
    DEVICE void settle() {
        wgmma_wait<kInFlight>();
        if (P::kResident || next_ - oldest_ <= kInFlight * P::kFilterParts) return;
        release(P::weights_empty(turn<P::kStages>(oldest_).slot));
        oldest_ += P::kFilterParts;
    }

  private:
    int next_, oldest_;
};

DEVICE uint64_t filter_matrix(SmemAddress block) { return matrix_descriptor(block, 16, kAtomBytes, Swizzle::k128B); }

// Groups of 8 pixels as operand B. They start anywhere in the 1024-byte pattern of the swizzle, whose XOR takes the
// bits of the shared address itself, as conv3x3_halo's do.
DEVICE uint64_t pixel_matrix(SmemAddress first, uint32_t group_bytes) {
    return matrix_descriptor(first, 16, group_bytes, Swizzle::k128B);
}

// What every sum begins with, instead of with a wgmma that does not accumulate: to the compiler that reads d too, and
// d's registers would be kept from one tile to the next. The zeros are there before any wgmma is under way.
template <int kCount>
DEVICE void clear(float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] = 0;
    settled(d);
}

// One slice of channels, both operands in shared memory.
template <ElementType kType, int kPixels>
DEVICE void multiply_slice(float (&d)[kPixels / 2], uint64_t filters, uint64_t pixels) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
        wgmma_ss<kType, kPixels, Major::kK, Major::kK>(d, advanced(filters, step * 32), advanced(pixels, step * 32),
                                                       true);
    wgmma_commit();
}

// ---- W1 x, over the halo ----

template <class P, ElementType kType>
DEVICE void multiply_halo(float (&d)[P::kHaloPart / 2], WeightBlocks<P>& weights, const Consumer<P>& consumer,
                          int slices, int first_use) {
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        Turn at = turn<P::kInputSlots>(first_use + slice);
        SmemAddress pixels = P::input(at.slot) + consumer.pixel_part * P::kHaloPart * kPixelBytes;
        uint64_t filters = filter_matrix(weights.take());
        mbarrier_wait(P::input_full(at.slot), at.parity);
        multiply_slice<kType, P::kHaloPart>(d, filters, pixel_matrix(pixels, kAtomBytes));
        weights.template settle<1>();
        if (!P::kKeepsInput && slice > 0) release(P::input_empty(turn<P::kInputSlots>(first_use + slice - 1).slot));
    }
    weights.template settle<0>();
    settled(d);
    if (!P::kKeepsInput) release(P::input_empty(turn<P::kInputSlots>(first_use + slices - 1).slot));
}

// ---- W2 y1, nine taps ----

struct Filters {  // W2 of 64 channels, as operand A; none where the weights are streamed
    uint32_t fragment[kTaps][kSteps][4];
};

template <class P>
DEVICE void take_filters(Filters& filters, const Consumer<P>& consumer) {
    int matrix = lane_index() / 8, row = consumer.thread / 32 * 16 + matrix % 2 * 8 + lane_index() % 8;
    mbarrier_wait(P::filters_full(), 0);
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            SmemAddress address = P::input(0) + tap * kFilterBytes + row * kPixelBytes + (2 * step + matrix / 2) * 16;
            load_matrix_x4(swizzled(Swizzle::k128B, address), filters.fragment[tap][step]);
        }
}

template <class P>
DEVICE uint64_t tap_matrix(SmemAddress halo, int tap, const Consumer<P>& consumer) {
    int first = P::tap_pixels(tap) + consumer.pixel_part * (P::kGroups / P::kPixelParts) * P::kGroupPixels;
    return pixel_matrix(halo + first * kPixelBytes, P::kGroupBytes);
}

template <class P, ElementType kType>
DEVICE void multiply_taps(float (&d)[P::kTilePart / 2], const Filters& filters, WeightBlocks<P>& weights,
                          const Consumer<P>& consumer) {
    if constexpr (P::kResident) {
        uint64_t pixels = tap_matrix<P>(P::y1(0), 0, consumer);
        wgmma_fence();
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
                wgmma_rs<kType, P::kTilePart, Major::kK>(d, filters.fragment[tap][step],
                                                         advanced(pixels, P::tap_pixels(tap) * kPixelBytes + step * 32),
                                                         true);
        wgmma_commit();
    } else {
#pragma unroll 1
        for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll 1
            for (int slice = 0; slice < P::kSlices; ++slice) {
                uint64_t block = filter_matrix(weights.take());
                multiply_slice<kType, P::kTilePart>(d, block, tap_matrix<P>(P::y1(slice), tap, consumer));
                weights.template settle<1>();
            }
    }
    weights.template settle<0>();
    settled(d);
}

// ---- W3 y2, and the projected shortcut, 64 output channels at once ----

template <class P, ElementType kType>
DEVICE void multiply_tile(float (&d)[P::kTilePart / 2], WeightBlocks<P>& weights, const Consumer<P>& consumer) {
#pragma unroll 1
    for (int slice = 0; slice < P::kSlices; ++slice) {
        SmemAddress pixels = P::y2(slice) + consumer.pixel_part * P::kTilePart * kPixelBytes;
        uint64_t block = filter_matrix(weights.take());
        multiply_slice<kType, P::kTilePart>(d, block, pixel_matrix(pixels, kAtomBytes));
        weights.template settle<1>();
    }
}

template <class P, ElementType kType>
DEVICE void multiply_shortcut(float (&d)[P::kTilePart / 2], WeightBlocks<P>& weights, const Consumer<P>& consumer,
                              int slices, int first_use) {
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        uint64_t pixels;
        if constexpr (P::kKeepsInput)
            pixels = tap_matrix<P>(P::input(turn<P::kInputSlots>(first_use + slice).slot), kCenterTap, consumer);
        else
            pixels = pixel_matrix(P::strided(slice) + consumer.pixel_part * P::kTilePart * kPixelBytes, kAtomBytes);
        uint64_t block = filter_matrix(weights.take());
        multiply_slice<kType, P::kTilePart>(d, block, pixels);
        weights.template settle<1>();
    }
}

}  // namespace bottleneck_inference
