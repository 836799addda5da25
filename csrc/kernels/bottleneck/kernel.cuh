// bottleneck_inference: a whole bottleneck of C = 64 or 128 channels, stride 1 or 2, NHWC float16 or bfloat16, float32
// accumulation, for sm_90a:
//
//     y1 = relu(W1 x * scale1 + shift1)             1x1
//     y2 = relu(W2 * y1 * scale2 + shift2)          3x3, padding 1, the block's stride
//     y  = relu(W3 y2 * scale3 + shift3 + shortcut)   1x1, to 4 C channels
//     shortcut    x, or Wd x * scaled + shiftd with the block's stride
//
// y1 and y2 are rounded to x's type, and never leave shared memory. Every block loops over tiles of the output.
// Warpgroup 0 brings a tile's input with its halo, and weights (load.cuh). Two consumer warpgroups make y1 of the halo,
// its padding zero; then y2 of the tile, whose nine taps are nine shifted views of y1; then y, 64 channels at a time.
// In all three the weights are operand A of wgmma, M = 64 filters, and the pixels are operand B (multiply.cuh). What
// leaves the accumulators is epilogue.cuh; tiles and memory are plan.cuh.
#pragma once
#include "kernels/bottleneck/epilogue.cuh"
#include "kernels/bottleneck/load.cuh"
#include "kernels/bottleneck/multiply.cuh"
#include "kernels/bottleneck/plan.cuh"

namespace bottleneck_inference {

// What must stand before the roles part.
template <class P>
DEVICE void prepare() {
    constexpr int kWarps = kConsumers * kConsumerWarps;
    if (thread_index() == 0) {
        for (int slot = 0; slot < P::kInputSlots; ++slot) {
            mbarrier_init(P::input_full(slot), 1);
            mbarrier_init(P::input_empty(slot), P::kIdentity ? P::kPixelParts : kWarps);
        }
        for (int stage = 0; stage < P::kStages; ++stage) {
            mbarrier_init(P::weights_full(stage), 1);
            mbarrier_init(P::weights_empty(stage), kWarps / P::kFilterParts);
        }
        mbarrier_init(P::strided_full(), 1);
        mbarrier_init(P::strided_empty(), kWarps);
        mbarrier_init(P::filters_full(), 1);
        mbarrier_init(P::slots_ready(), kConsumers * kWarpgroup);
        mbarrier_init_fence();
    }
    cta_sync();
}

// The pixels behind those that TMA or an epilogue brings are multiplied with the others, and what comes of them is
// dropped. Cleared once, so that nothing is read that was never written.
template <class P>
DEVICE void clear_tails(const Consumer<P>& consumer) {
    constexpr int kInputTail = (P::kSlotPixels - P::kHaloPixels) * kPixelBytes;
    constexpr int kHiddenTail = (P::kHiddenPixels - P::kSlotPixels) * kPixelBytes;
    int offset = (consumer.index * kWarpgroup + consumer.thread) * static_cast<int>(sizeof(Chunk));
    constexpr int kStride = kConsumers * kWarpgroup * sizeof(Chunk);
    for (int slot = 0; slot < P::kInputSlots; ++slot)
        for (int at = offset; at < kInputTail; at += kStride)
            store_shared(P::input(slot) + P::kHaloPixels * kPixelBytes + at, Chunk{});
    for (int slice = 0; slice < P::kSlices; ++slice)
        for (int at = offset; at < kHiddenTail; at += kStride)
            store_shared(P::y1(slice) + P::kSlotPixels * kPixelBytes + at, Chunk{});
    fence_proxy_async();
}

template <class P, ElementType kType>
DEVICE void make_y1(const Arguments& arguments, WeightBlocks<P>& weights, const Consumer<P>& consumer, const Tile& tile,
                    int first_use) {
    ScaleShift norm = load_norm(arguments.conv1, consumer, consumer.filter_part * kFilterTile);
    float d[P::kHaloPart / 2];
    clear(d);
    multiply_halo<P, kType>(d, weights, consumer, arguments.slices, first_use);
    consumer.sync_all();  // nobody reads the last tile's y1 and y2 any more
    store_y1<P, kType>(d, norm, consumer, Inside<P>(arguments.problem, tile));
    fence_proxy_async();
    consumer.sync_all();
}

template <class P, ElementType kType>
DEVICE void make_y2(const Arguments& arguments, const Filters& filters, WeightBlocks<P>& weights,
                    const Consumer<P>& consumer) {
    ScaleShift norm = load_norm(arguments.conv2, consumer, consumer.filter_part * kFilterTile);
    float d[P::kTilePart / 2];
    clear(d);
    multiply_taps<P, kType>(d, filters, weights, consumer);
    if constexpr (P::kSharesHidden) consumer.sync_all();
    store_y2<P, kType>(d, norm, consumer);
    fence_proxy_async();
    if constexpr (P::kFilterParts > 1)
        consumer.sync_all();
    else
        consumer.sync();
}

// One thread: the slot whose stores were committed last can be filled again.
template <class P>
DEVICE void free_stored(int slot) {
    tma_store_wait_read();
    mbarrier_arrive(P::input_empty(slot));
}

template <class P, ElementType kType>
DEVICE void make_identity_output(const Parameters& parameters, WeightBlocks<P>& weights, const Consumer<P>& consumer,
                                 const Tile& tile, int first_use) {
    int stored = -1;  // the slot that the stores in flight read
#pragma unroll 1
    for (int pass = 0; pass < kExpansion; ++pass) {
        int chunk = pass * P::kFilterParts + consumer.filter_part;
        ScaleShift norm = load_norm(parameters.arguments.conv3, consumer, chunk * kFilterTile);
        float d[P::kTilePart / 2];
        clear(d);
        multiply_tile<P, kType>(d, weights, consumer);
        weights.template settle<0>();
        settled(d);
        if (consumer.thread == 0 && stored >= 0) free_stored<P>(stored);
        stored = turn<P::kInputSlots>(first_use + chunk).slot;
        store_identity<P, kType>(d, norm, parameters, consumer, tile, chunk * kFilterTile, stored);
    }
    if (consumer.thread == 0) free_stored<P>(stored);
}

template <class P, ElementType kType>
DEVICE void make_projected_output(const Parameters& parameters, WeightBlocks<P>& weights, const Consumer<P>& consumer,
                                  const Tile& tile, int first_use, int tiles) {
    const Arguments& arguments = parameters.arguments;
    if constexpr (!P::kKeepsInput) mbarrier_wait(P::strided_full(), tiles % 2);
#pragma unroll 1
    for (int pass = 0; pass < kExpansion; ++pass) {
        int channel = (pass * P::kFilterParts + consumer.filter_part) * kFilterTile;
        float d[P::kTilePart / 2], shortcut[P::kTilePart / 2];
        clear(d);
        clear(shortcut);
        multiply_tile<P, kType>(d, weights, consumer);
        multiply_shortcut<P, kType>(shortcut, weights, consumer, arguments.slices, first_use);
        ScaleShift norm = load_norm(arguments.conv3, consumer, channel);
        ScaleShift shortcut_norm = load_norm(arguments.downsample, consumer, channel);
        weights.template settle<0>();
        settled(d);
        settled(shortcut);
        if (pass == kExpansion - 1) {
            if constexpr (P::kKeepsInput)
                for (int slice = 0; slice < arguments.slices; ++slice)
                    release(P::input_empty(turn<P::kInputSlots>(first_use + slice).slot));
            else
                release(P::strided_empty());
        }
        store_projected<P, kType>(d, norm, shortcut, shortcut_norm, parameters, consumer, tile, channel);
    }
}

template <class P, ElementType kType>
DEVICE void consume(const Parameters& parameters, int index) {
    const Arguments& arguments = parameters.arguments;
    Consumer<P> consumer(index);
    Filters filters;
    if constexpr (P::kResident) {
        take_filters(filters, consumer);
        consumer.sync_all();
    }
    clear_tails(consumer);
    mbarrier_arrive(P::slots_ready());
    WeightBlocks<P> weights(consumer);
    wait_for_previous_grid();
    int tiles = 0;
    for (int at = block_index(); at < P::tile_count(arguments.problem); at += block_count(), ++tiles) {
        Tile tile = P::tile_at(arguments.problem, at);
        int first_use = tiles * arguments.slices;
        weights.begin_tile();
        make_y1<P, kType>(arguments, weights, consumer, tile, first_use);
        make_y2<P, kType>(arguments, filters, weights, consumer);
        if constexpr (P::kIdentity)
            make_identity_output<P, kType>(parameters, weights, consumer, tile, first_use);
        else
            make_projected_output<P, kType>(parameters, weights, consumer, tile, first_use, tiles);
    }
    if (consumer.thread == 0) tma_store_wait_read();
}

template <ElementType kType, int kChannels, int kStride, Shortcut kShortcut, Weights kWeights>
__global__ void __launch_bounds__(kThreads, 1)
    bottleneck_inference_kernel(const __grid_constant__ Parameters parameters) {
    using P = Plan<kChannels, kStride, kShortcut, kWeights>;
    prepare<P>();
    launch_next_grid();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<P::kProducerRegisters>();
        produce<P>(parameters);
    } else {
        register_budget_increase<P::kConsumerRegisters>();
        consume<P, kType>(parameters, warpgroup - 1);
    }
}

}  // namespace bottleneck_inference
