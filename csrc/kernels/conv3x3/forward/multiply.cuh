// conv3x3_halo, consumers: d[filter][output pixel] = sum over taps and input channels.
#pragma once
#include "device/gemm.cuh"
#include "kernels/conv3x3/forward/plan.cuh"

namespace conv3x3_halo {

// The barrier that says that a slice is ready to be multiplied.
template <class P>
DEVICE SmemAddress slice_ready(bool normalized, int slot) {
    return normalized ? P::halo_normalized(slot) : P::halo_full(slot);
}

// A warp's share of the products that read a buffer is done; wgmma.wait_group speaks for the whole warp.
// The output pixels of a tile as operand B, for tap (0, 0): groups of 8 pixels. It starts anywhere in the 1024-byte
// pattern of the swizzle, whose XOR takes the bits of the shared address itself: see csrc/emulation/README.md.
template <class P>
DEVICE uint64_t pixel_matrix(int slot) {
    return matrix_descriptor(P::slice(slot), 16, P::kGroupBytes, Swizzle::k128B);
}

// One tap and slice of 64 filters, from shared memory.
template <class P, ElementType kType>
DEVICE void multiply_tap(float (&d)[P::kAccumulators], SmemAddress filters, uint64_t pixels, bool accumulate) {
    uint64_t matrix = matrix_descriptor(filters, 16, 8 * kPixelBytes, Swizzle::k128B);
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
        wgmma_ss<kType, P::kTilePixels, Major::kK, Major::kK>(d, advanced(matrix, step * 32),
                                                              advanced(pixels, step * 32), accumulate || step > 0);
}

// ---- 64 channels to 64: the weights are operand A in registers, but for the last tap ----

// Eight taps are 128 registers; with the ninth, the accumulator and the epilogue would not find enough of them.
struct Filters {
    uint32_t fragment[kLastTap][kSteps][4];
};

template <class P>
DEVICE Filters take_filters(int thread) {
    Filters filters;
    int lane = lane_index(), matrix = lane / 8, row = thread / 32 * 16 + matrix % 2 * 8 + lane % 8;
    mbarrier_wait(P::filters_full(), 0);
#pragma unroll
    for (int tap = 0; tap < kLastTap; ++tap)
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            SmemAddress address = P::slice(0) + tap * kFilterBytes + row * kPixelBytes + (2 * step + matrix / 2) * 16;
            load_matrix_x4(swizzled(Swizzle::k128B, address), filters.fragment[tap][step]);
        }
    fence_proxy_async();  // read by these threads, written by TMA next
    mbarrier_arrive(P::filters_taken());
    return filters;
}

template <class P, ElementType kType>
DEVICE void multiply(float (&d)[P::kAccumulators], const Filters& filters, int slot) {
    uint64_t pixels = pixel_matrix<P>(slot);
    wgmma_fence();
#pragma unroll
    for (int tap = 0; tap < kLastTap; ++tap)
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
            wgmma_rs<kType, P::kTilePixels, Major::kK>(
                d, filters.fragment[tap][step], advanced(pixels, P::tap_offset(tap) + step * 32), tap + step > 0);
    multiply_tap<P, kType>(d, P::weights(0), advanced(pixels, P::tap_offset(kLastTap)), true);
    wgmma_commit();
    wgmma_wait<0>();
    settled(d);
    release(P::halo_empty(slot));
}

// ---- more of either: the weights are operand A in shared memory, as they stream through ----

// One slice, for all filters of this pass. `use` counts the stages of weights.
template <class P, ElementType kType>
DEVICE void multiply_slice(float (&d)[P::kFilterTiles][P::kAccumulators], int consumer, int slot, bool first_slice,
                           int& use) {
    uint64_t pixels = pixel_matrix<P>(slot);
#pragma unroll 1
    for (int tap = 0; tap < kTaps; ++tap) {
        uint64_t tap_pixels = advanced(pixels, P::tap_offset(tap));
#pragma unroll
        for (int tile = 0; tile < P::kFilterTiles; ++tile, ++use) {
            Turn at = turn<P::kStages>(use);
            mbarrier_wait(P::weights_full(at.slot), at.parity);
            wgmma_fence();
            multiply_tap<P, kType>(d[tile], P::weights(at.slot) + consumer * kFilterBytes, tap_pixels,
                                   !first_slice || tap > 0);
            wgmma_commit();
            wgmma_wait<1>();  // of this slice, all but the products just issued
            if (tap + tile > 0) release(P::weights_empty(turn<P::kStages>(use - 1).slot));
        }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int tile = 0; tile < P::kFilterTiles; ++tile) settled(d[tile]);
    release(P::weights_empty(turn<P::kStages>(use - 1).slot));
}

}  // namespace conv3x3_halo
