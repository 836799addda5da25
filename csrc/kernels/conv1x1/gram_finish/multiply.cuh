// conv1x1_gram_finish, consumers: d = a quadratic of a tile of pixels, a made of z on its way to operand A's registers.
// z stays what it is in shared memory, and the tensor cores multiply sixteen channels while the next are made.
#pragma once
#include "kernels/conv1x1/gram_finish/plan.cuh"

namespace conv1x1_gram_finish {

struct Fragments {  // of one step
    uint32_t value[kRowBlocks][4];
};

template <class V>
DEVICE void make_fragments(Fragments& a, SmemAddress z, int step, const Arguments& arguments, int first_channel,
                           const Consumer& consumer) {
    Norm norm[2];
#pragma unroll
    for (int eight = 0; eight < 2; ++eight)
        norm[eight] = activations::load_norm(arguments.prologue, arguments.center,
                                             first_channel + 16 * step + 8 * eight + lane_index() % 4 * 2,
                                             arguments.problem.channels);
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) {
        uint32_t (&value)[4] = a.value[block];
        load_matrix_x4(matrix_row(z, block * 64 + consumer.warp * 16, 2 * step), value);
#pragma unroll
        for (int j = 0; j < 4; ++j) value[j] = activations::centered<V::kType>(value[j], norm[j / 2]);
    }
}

// Leading and trailing bits meet the same fragments.
template <class V>
DEVICE void multiply_fragments(Accumulators<V>& d, const Fragments& a, uint64_t quadratic, bool accumulate) {
    wgmma_fence();
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block)
            wgmma_rs<V::kType, V::kColumns, Major::kMN>(d.block[block], a.value[block],
                                                        advanced(quadratic, part * kPartBytes), accumulate || part > 0);
    wgmma_commit();
}

// Two sets of fragments: one is filled while wgmma still reads the other.
template <class V>
DEVICE void multiply(Accumulators<V>& d, const Arguments& arguments, int first_use, const Consumer& consumer) {
    Fragments a[2];
    int slices = arguments.problem.slices();
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        int use = first_use + slice;
        Turn at = turn<V::kStages>(use);
        SmemAddress z = V::z(at.slot, consumer.index);
        uint64_t quadratic =
            matrix_descriptor(V::quadratic(at.slot, 0), kParts * kPartBytes, kAtomBytes, Swizzle::k128B);
        mbarrier_wait(V::full(at.slot), at.parity);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            make_fragments<V>(a[step % 2], z, step, arguments, slice * kSliceChannels, consumer);
            multiply_fragments<V>(d, a[step % 2], advanced(quadratic, step * kStepRowsBytes), slice + step > 0);
            wgmma_wait<1>();
            if (step == 0 && slice > 0) release<V>(use - 1);
        }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) settled(d.block[block]);
    release<V>(first_use + slices - 1);
}

}  // namespace conv1x1_gram_finish
