// conv3x3_halo: 3x3 convolution with padding 1, C -> C channels (64, 128, 256, 512) with stride 1 or 2, C -> 2 C (64,
// 128, 256) with stride 2, NHWC float16 or bfloat16, float32 accumulation, for sm_90a.
//
//     out = epilogue(conv(prologue(input), weights))
//     prologue    nothing, or relu(x * in_scale + in_shift) rounded to x's type; the padding is zero after it
//     epilogue    act(z * scale + shift + residual), or z and, per filter, (count, mean, M2) of z as rounded
//
// Every block loops over tiles of the output. Warpgroup 0 brings a tile's input with its halo into shared memory, where
// some of its warps apply the prologue once (load.cuh). Two consumer warpgroups read the nine taps as nine shifted
// views of the same pixels: operand B of wgmma, N = pixels. The weights are operand A, M = 64 filters: in registers
// where 64 channels go to 64, else streamed through shared memory (multiply.cuh). The epilogue goes out through a
// staging buffer and TMA (epilogue.cuh). Tiles, slices, memory: plan.cuh.
#pragma once
#include "kernels/conv3x3/forward/epilogue.cuh"
#include "kernels/conv3x3/forward/load.cuh"
#include "kernels/conv3x3/forward/multiply.cuh"
#include "kernels/conv3x3/forward/plan.cuh"

namespace conv3x3_halo {

struct Parameters {
    TensorMap input, weights, output, residual;  // maps.h
    Arguments arguments;
};

// What must stand before the roles part.
template <class P, ElementType kType>
DEVICE void prepare(const Arguments& arguments) {
    if (thread_index() == 0) {
        for (int slot = 0; slot < P::kSlots; ++slot) {
            mbarrier_init(P::halo_full(slot), 1);
            mbarrier_init(P::halo_normalized(slot), Normalizers<P>::kThreads);
            mbarrier_init(P::halo_empty(slot), kConsumerWarps * (P::kWeightsInRegisters ? 1 : kConsumers));
        }
        for (int stage = 0; stage < P::kStages; ++stage) {
            mbarrier_init(P::weights_full(stage), 1);
            mbarrier_init(P::weights_empty(stage), kConsumers * kConsumerWarps);
        }
        for (int consumer = 0; consumer < kConsumers; ++consumer) mbarrier_init(P::residual_full(consumer), 1);
        mbarrier_init(P::filters_full(), 1);
        mbarrier_init(P::filters_taken(), kConsumers * kWarpgroup);
        mbarrier_init_fence();
    }
    if (arguments.in_scale) {
        wait_for_previous_grid();
        prepare_norm<P, kType>(arguments.in_scale, arguments.in_shift, arguments.packed_limit, thread_index());
    }
    cta_sync();
}

template <class P, ElementType kType>
DEVICE void produce(const Parameters& parameters) {
    const Arguments& arguments = parameters.arguments;
    int warp = warp_uniform(thread_index() / 32);
    if (warp == kHaloWarp) {
        tma_prefetch_map(parameters.input);
        if constexpr (P::kWeightsInRegisters) {
            if (!arguments.weights_ready) wait_for_previous_grid();
            load_filters<P>(parameters.weights);
        }
        wait_for_previous_grid();
        load_halos<P>(parameters.input, arguments.problem);
    } else if (warp < Normalizers<P>::kFirstWarp) {
        if constexpr (!P::kWeightsInRegisters) {
            if (!arguments.weights_ready) wait_for_previous_grid();
            if (lane_index() == 0) stream_weights<P>(parameters.weights, arguments.problem);
        }
    } else if (arguments.in_scale) {
        normalize_halos<P, kType>(arguments.in_scale, arguments.in_shift, arguments.problem);
    }
}

// 64 filters of a tile, multiplied: through the epilogue and to global memory. Returns the pixels that went into the
// moments, which each filter of a tile adds to those of the tiles before.
template <class P, ElementType kType, Epilogue kEpilogue>
DEVICE int finish(const float (&d)[P::kAccumulators], const Parameters& parameters, Consumer& consumer,
                  const Tile& tile, int first_filter) {
    const Arguments& arguments = parameters.arguments;
    auto store = [&](auto finish_pair) {
        store_tile<P, kEpilogue>(parameters.output, parameters.residual, arguments, consumer, tile, first_filter,
                                 finish_pair);
    };
    if constexpr (kEpilogue == Epilogue::kStatistics) {
        Rounded<P, kType> z(d);
        Extent pixels = extent<P>(arguments.problem, tile);
        count_tile(z, consumer, pixels, first_filter);
        store([&](int pair, uint32_t) { return z.word[pair]; });
        return pixels.count;
    } else {
        ScaleShift norm = load_scale_shift(arguments, consumer, first_filter);
        float lowest = arguments.relu ? 0.0f : -INFINITY;
        store([&](int pair, uint32_t residual) {
            return scale_shift_act<kType>(d[2 * pair], d[2 * pair + 1], residual, norm.scale[pair % 2],
                                          norm.shift[pair % 2], lowest);
        });
        return 0;
    }
}

// 64 filters: the consumers take turns with the tiles, so that one multiplies while the other is in its epilogue.
template <class P, ElementType kType, Epilogue kEpilogue>
DEVICE void consume_tiles(const Parameters& parameters, const Filters& filters, Consumer& consumer) {
    const Arguments& arguments = parameters.arguments;
    int use = consumer.index;
    for (int index = block_index() + consumer.index * block_count(); index < P::tile_count(arguments.problem);
         index += kConsumers * block_count(), use += kConsumers) {
        Turn at = turn<P::kSlots>(use);
        Tile tile = tile_at<P>(arguments.problem, index);
        if (consumer.thread == 0) open_staged<P, kEpilogue>(parameters.residual, arguments, consumer, tile, 0, 0);
        mbarrier_wait(slice_ready<P>(arguments.in_scale, at.slot), at.parity);
        float d[P::kAccumulators];
        multiply<P, kType>(d, filters, at.slot);
        consumer.pixels += finish<P, kType, kEpilogue>(d, parameters, consumer, tile, 0);
    }
}

// More filters: both consumers work on one tile, each on 64 of every 128 filters.
template <class P, ElementType kType, Epilogue kEpilogue>
DEVICE void consume_filters(const Parameters& parameters, Consumer& consumer) {
    const Arguments& arguments = parameters.arguments;
    int weights_use = 0, first_use = 0;
    for (int index = block_index(); index < P::tile_count(arguments.problem);
         index += block_count(), first_use += P::kSlices) {
        Tile tile = tile_at<P>(arguments.problem, index);
        int pixels = 0;
#pragma unroll 1
        for (int pass = 0; pass < P::kPasses; ++pass) {
            int first_filter = pass * P::kFiltersAtOnce + consumer.index * kFilterTile;
            if (consumer.thread == 0)
                open_staged<P, kEpilogue>(parameters.residual, arguments, consumer, tile, 0, first_filter);
            float d[P::kFilterTiles][P::kAccumulators];
#pragma unroll 1
            for (int slice = 0; slice < P::kSlices; ++slice) {
                Turn at = turn<P::kSlots>(first_use + slice);
                mbarrier_wait(slice_ready<P>(arguments.in_scale, at.slot), at.parity);
                multiply_slice<P, kType>(d, consumer.index, at.slot, slice == 0, weights_use);
                if (pass == P::kPasses - 1) release(P::halo_empty(at.slot));
            }
#pragma unroll
            for (int i = 0; i < P::kFilterTiles; ++i) {
                int filter = first_filter + i * kConsumers * kFilterTile;
                if (i > 0 && consumer.thread == 0)
                    open_staged<P, kEpilogue>(parameters.residual, arguments, consumer, tile, 0, filter);
                pixels = finish<P, kType, kEpilogue>(d[i], parameters, consumer, tile, filter);
            }
        }
        consumer.pixels += pixels;
    }
}

template <class P, ElementType kType, Epilogue kEpilogue>
DEVICE void consume(const Parameters& parameters, int index) {
    Consumer consumer(index);
    if constexpr (P::kWeightsInRegisters) {
        Filters filters = take_filters<P>(consumer.thread);
        wait_for_previous_grid();
        consume_tiles<P, kType, kEpilogue>(parameters, filters, consumer);
    } else {
        wait_for_previous_grid();
        consume_filters<P, kType, kEpilogue>(parameters, consumer);
    }
    if (consumer.thread == 0) tma_store_wait_read();
    if constexpr (kEpilogue == Epilogue::kStatistics) write_partials<P>(parameters.arguments, consumer);
}

template <ElementType kType, int kChannels, int kFilters, int kStride, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, 1) conv3x3_halo_kernel(const __grid_constant__ Parameters parameters) {
    using P = Plan<kChannels, kFilters, kStride>;
    static_assert(P::kWholeRows == P::kTileRows, "consumers share filters in conv3x3_halo_dgrad alone");
    prepare<P, kType>(parameters.arguments);
    launch_next_grid();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<P::kProducerRegisters>();
        produce<P, kType>(parameters);
    } else {
        register_budget_increase<P::kConsumerRegisters>();
        consume<P, kType, kEpilogue>(parameters, warpgroup - 1);
    }
}

}  // namespace conv3x3_halo
