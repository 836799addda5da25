// stem: a ResNet's first convolution, 7x7 of stride 2 and padding 3, 3 -> 64 channels, NHWC float16 or bfloat16,
// float32 accumulation, for sm_90a: an implicit GEMM, gemm_m = pixels, gemm_n = filters, gemm_k = 7 rows of 8 taps of 4
// channels, of which the last tap and the last channel are zeros.
//
//     out = epilogue(conv(images, filters))
//     epilogue    act(z * scale + shift + residual), or z and, per filter, (count, mean, M2) of z as rounded
//
// Every block loops over tiles of 8 x 16 outputs. Warpgroup 0 keeps a ring of halos full (kernels/stem/image.cuh). Two
// consumer warpgroups take every other tile each, so that one can multiply while the other is in its epilogue, which is
// conv1x1's. Operand A, the im2col matrix, goes from the halo through ldmatrix into registers, where the eighth tap, a
// pixel that may be NaN, is made zero; operand B, the filters, stays in shared memory.
#pragma once
#include "kernels/conv1x1/forward/epilogue.cuh"
#include "kernels/stem/forward/plan.cuh"

namespace stem {

constexpr int kRowSteps = 2;  // wgmmas of k = 16 for a row of the filter

// ---- load ----

// The filters, padded as the pixels are.
template <class V>
DEVICE void load_filters(const uint16_t* filters) {
    constexpr int kCount = kFilters * kFilterSize * kTaps;
#pragma unroll 5
    for (int i = thread_index(); i < kCount; i += kThreads) {
        int tap = i % kTaps, filter = i / kTaps % kFilters, row = i / (kTaps * kFilters);
        const uint16_t* from = filters + ((filter * kFilterSize + row) * kFilterSize + tap) * kChannels;
        uint16_t element[kChannels] = {};
        if (tap < kFilterSize)
            for (int channel = 0; channel < kChannels; ++channel) element[channel] = load_element(from + channel);
        SmemAddress to = V::filter_rows(row) + filter * V::kFilterRowBytes + tap * kImagePixelBytes;
        store_shared(swizzled(Swizzle::k64B, to), padded(element));
    }
    fence_proxy_async();
}

template <class V>
DEVICE void produce(const Parameters& parameters) {
    int thread = thread_index();
    for_each_halo(parameters.images, parameters.arguments.problem.tiles, thread,
                  [&](int, int use, const HaloPart& part) {
                      Turn at = turn<V::kSlots>(use);
                      mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
                      store_halo(V::halo(at.slot), part, thread);
                      mbarrier_arrive(V::full(at.slot));
                  });
}

// ---- multiply ----

struct Fragments {  // of one row of the filter
    uint32_t value[kRowSteps][kRowBlocks][4];
};

DEVICE void load_fragments(Fragments& fragments, SmemAddress halo, int filter_row, const Consumer& consumer) {
    int column = lane_index() % 16, pair = lane_index() / 16;
    uint32_t filter_taps = lane_index() % 4 < 2 ? 0xFFFFFFFF : 0;  // of the last two: the eighth is none
#pragma unroll
    for (int step = 0; step < kRowSteps; ++step)
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            uint32_t (&value)[4] = fragments.value[step][block];
            int row = block * (kTileRows / kRowBlocks) + consumer.warp;
            load_matrix_x4(tap_pair(halo, row, column, filter_row, 2 * step + pair), value);
            if (step < kRowSteps - 1) continue;
            value[2] &= filter_taps;
            value[3] &= filter_taps;
        }
}

template <class V>
DEVICE void multiply_row(Accumulators<V>& d, const Fragments& fragments, int filter_row) {
    uint64_t filters = matrix_descriptor(V::filter_rows(filter_row), 16, 8 * V::kFilterRowBytes, Swizzle::k64B);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kRowSteps; ++step)
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block)
            wgmma_rs<V::kType, V::kFilters, Major::kK>(d.block[block], fragments.value[step][block],
                                                       advanced(filters, step * 32), filter_row + step > 0);
    wgmma_commit();
}

// Two sets of fragments: one is filled while wgmma still reads the other.
template <class V>
DEVICE void multiply(Accumulators<V>& d, const Turn& at, const Consumer& consumer) {
    Fragments fragments[2];
    mbarrier_wait(V::full(at.slot), at.parity);
#pragma unroll
    for (int row = 0; row < kFilterSize; ++row) {
        if (row > 1) wgmma_wait<1>();
        load_fragments(fragments[row % 2], V::halo(at.slot), row, consumer);
        multiply_row<V>(d, fragments[row % 2], row);
    }
    wgmma_wait<0>();
    if (lane_index() == 0) mbarrier_arrive(V::empty(at.slot));  // wgmma.wait_group speaks for the whole warp
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) settled(d.block[block]);
}

// ---- kernel ----

template <class V>
DEVICE void prepare(const Parameters& parameters) {
    if (thread_index() == 0) {
        for (int slot = 0; slot < V::kSlots; ++slot) {
            mbarrier_init(V::full(slot), kLoaders);
            mbarrier_init(V::empty(slot), kWarps);
        }
        for (int consumer = 0; consumer < kConsumers; ++consumer) mbarrier_init(V::residual_full(consumer), 1);
        mbarrier_init_fence();
    }
    launch_next_grid();
    wait_for_previous_grid();
    load_filters<V>(parameters.filters);
    cta_sync();
}

// The slots that a consumer waits for are its own, so that each wait is for the phase after that of the one before.
template <class V>
DEVICE void consume(const Parameters& parameters, int index) {
    const Tiles& tiles = parameters.arguments.problem.tiles;
    Consumer consumer(index);
    int use = index, finished = 0, step = kConsumers * block_count();
#pragma unroll 1
    for (int tile = block_index() + index * block_count(); tile < tiles.count(); tile += step, use += kConsumers) {
        Work work = {};
        work.pixel_tile = tile;
        work.pixels = tiles.first(tile);
        if (consumer.thread == 0) conv1x1::open_output<V>(parameters, work, consumer);
        Accumulators<V> d;
        multiply<V>(d, turn<V::kSlots>(use), consumer);
        conv1x1::finish<V>(d, parameters, work, consumer, finished++);
    }
    if (consumer.thread == 0) tma_store_wait_read();
}

template <ElementType kType, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, 1) stem_kernel(const __grid_constant__ Parameters parameters) {
    using V = Variant<kType, kEpilogue>;
    prepare<V>(parameters);
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0)
        produce<V>(parameters);
    else
        consume<V>(parameters, warpgroup - 1);
}

}  // namespace stem
