// conv1x1, consumers: d[pixel][filter] = sum over the channels of a tile's work.
#pragma once
#include "kernels/conv1x1/forward/plan.cuh"

namespace conv1x1 {

// The consumers multiply in the order of their tiles. Not only because the tensor cores are then handed over whole: who
// waited for the n-th use of a stage before its use n - 1 was complete would take the phase before that for its own.
template <class V>
DEVICE void await_turn(const Consumer& consumer, int tile) {
    mbarrier_wait(V::may_multiply(consumer.index), (tile + (consumer.index == 0)) % 2);
}
template <class V>
DEVICE void pass_turn(const Consumer& consumer) {
    if (lane_index() == 0) mbarrier_arrive(V::may_multiply(kConsumers - 1 - consumer.index));
}

// A warp's share of the products that read a stage is done; wgmma.wait_group speaks for the whole warp.
template <class V>
DEVICE void release(int stage) {
    if (lane_index() == 0) mbarrier_arrive(V::empty(stage));
}

// Waits for all products but those committed last, and frees the stage before that of `use`, which they do not read.
template <class V>
DEVICE void release_previous(int use) {
    wgmma_wait<1>();
    release<V>(turn<V::kStages>(use - 1).slot);
}

template <class V>
DEVICE void finish_products(Accumulators<V>& d, int use, const Consumer& consumer) {
    pass_turn<V>(consumer);
    wgmma_wait<0>();
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) settled(d.block[block]);
    release<V>(turn<V::kStages>(use - 1).slot);
}

DEVICE uint64_t operand(SmemAddress slice) { return matrix_descriptor(slice, 16, kAtomBytes, Swizzle::k128B); }

// ---- without a prologue: both operands in shared memory ----

template <class V>
DEVICE void multiply_loaded(Accumulators<V>& d, int slices, int first_use, const Consumer& consumer) {
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        Turn at = turn<V::kStages>(first_use + slice);
        uint64_t pixels = operand(V::input(at.slot)), filters = operand(V::weights(at.slot));
        mbarrier_wait(V::full(at.slot), at.parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int block = 0; block < kRowBlocks; ++block)
                wgmma_ss<V::kType, V::kFilters, Major::kK, Major::kK>(
                    d.block[block], advanced(pixels, block * kRowBlockBytes + step * 32), advanced(filters, step * 32),
                    slice + step > 0);
        wgmma_commit();
        if (slice > 0) release_previous<V>(first_use + slice);
    }
    finish_products<V>(d, first_use + slices, consumer);
}

// ---- with a prologue: the pixels go through registers, as operand A ----

constexpr int kHalfSteps = kSteps / 2;

struct Fragments {  // of half a slice
    uint32_t value[kHalfSteps][kRowBlocks][4];
};

struct NormPairs {
    Floats2 scale[2], shift[2];  // of the channel pairs in a fragment's registers 0, 1 and 2, 3
};

// Channels that do not exist become 0: their weights are 0 too.
DEVICE NormPairs load_norm(const Arguments& arguments, int first_channel) {
    NormPairs norm = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (first_channel + 8 * half >= arguments.problem.channels) continue;
        int channel = first_channel + 8 * half + lane_index() % 4 * 2;
        norm.scale[half] = load_pair(arguments.in_scale + channel);
        norm.shift[half] = load_pair(arguments.in_shift + channel);
    }
    return norm;
}

// relu(x * scale + shift), rounded to x's type, of half a slice.
template <class V>
DEVICE void normalize(Fragments& fragments, SmemAddress slice, int half, const Arguments& arguments, int first_channel,
                      const Consumer& consumer) {
#pragma unroll
    for (int i = 0; i < kHalfSteps; ++i) {
        int step = half * kHalfSteps + i;
        NormPairs norm = load_norm(arguments, first_channel + 16 * step);
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            uint32_t (&value)[4] = fragments.value[i][block];
            load_matrix_x4(matrix_row(slice, block * 64 + consumer.warp * 16, 2 * step), value);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const Floats2 &scale = norm.scale[j / 2], &shift = norm.shift[j / 2];
                Floats2 x = unpack<V::kType>(value[j]);
                value[j] = pack_relu<V::kType>(fmaf(x.value[0], scale.value[0], shift.value[0]),
                                               fmaf(x.value[1], scale.value[1], shift.value[1]));
            }
        }
    }
}

template <class V>
DEVICE void multiply_fragments(Accumulators<V>& d, const Fragments& fragments, uint64_t filters, bool accumulate) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHalfSteps; ++step)
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block)
            wgmma_rs<V::kType, V::kFilters, Major::kK>(d.block[block], fragments.value[step][block],
                                                       advanced(filters, step * 32), accumulate || step > 0);
    wgmma_commit();
}

// Two sets of fragments: one is filled while wgmma still reads the other.
template <class V>
DEVICE void multiply_normalized(Accumulators<V>& d, const Arguments& arguments, int first_slice, int slices,
                                int first_use, const Consumer& consumer) {
    Fragments first, second;
#pragma unroll 1
    for (int slice = 0; slice < slices; ++slice) {
        Turn at = turn<V::kStages>(first_use + slice);
        uint64_t filters = operand(V::weights(at.slot));
        int channel = (first_slice + slice) * kSliceChannels;
        mbarrier_wait(V::full(at.slot), at.parity);
        normalize<V>(first, V::input(at.slot), 0, arguments, channel, consumer);
        multiply_fragments<V>(d, first, filters, slice > 0);
        if (slice > 0) release_previous<V>(first_use + slice);
        normalize<V>(second, V::input(at.slot), 1, arguments, channel, consumer);
        multiply_fragments<V>(d, second, advanced(filters, kHalfSteps * 32), true);
        wgmma_wait<1>();
    }
    finish_products<V>(d, first_use + slices, consumer);
}

// It is this consumer's turn. `first_use` counts the stages that all tiles before have used.
template <class V>
DEVICE void multiply(Accumulators<V>& d, const Arguments& arguments, int first_slice, int slices, int first_use,
                     const Consumer& consumer) {
    if constexpr (V::kPrologue)
        multiply_normalized<V>(d, arguments, first_slice, slices, first_use, consumer);
    else
        multiply_loaded<V>(d, slices, first_use, consumer);
}

}  // namespace conv1x1
