// conv3x3_halo_dgrad: the gradient of a 3x3 convolution's input, padding 1, C -> C channels (64, 128, 256, 512) with
// stride 1 or 2, C -> 2 C (64, 128, 256) with stride 2, NHWC float16 or bfloat16, float32 accumulation, for sm_90a.
//
//     dz = a * g + b * z + c          rounded; the backward of the convolution's own batch norm
//     dx = conv_transpose(dz, weight) where not below_z * below_scale + below_shift <= 0, else 0
//     or   conv_transpose(dz, weight) + s where not below_out <= 0, else 0     a block below; not C -> C at stride 2
//     s  = skip where not skip_out <= 0, else 0; at stride 2 of the pixels (2 i, 2 j) alone
//     partials                        per channel, the sums of dx as rounded and of dx * (below_z - below_mean)
//
// The warpgroups' roles, the taps as shifted views of a halo in shared memory, the streamed weights and the staged
// output are conv3x3_halo's own. New are: a second map in the prologue (load.cuh), the phases of stride 2 (plan.cuh),
// and the mask and the sums in the epilogue (epilogue.cuh).
#pragma once
#include "kernels/conv3x3/dgrad/epilogue.cuh"
#include "kernels/conv3x3/dgrad/load.cuh"
#include "kernels/conv3x3/forward/multiply.cuh"

namespace conv3x3_halo_dgrad {

// ---- multiply ----

// 64 channels to 64, the weights in registers.
template <class P, ElementType kType, int kPhase>
DEVICE void multiply_phase(float (&d)[P::kAccumulators], const Filters& filters, int slot) {
    uint64_t pixels = pixel_matrix<P>(slot);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < P::tap_count(kPhase); ++i) {
        int tap = P::tap(kPhase, i);
        uint64_t tap_pixels = advanced(pixels, P::pixels_offset(tap));
        if (tap == kLastTap) {
            multiply_tap<P, kType>(d, P::weights(0), tap_pixels, i > 0);
            continue;
        }
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
            wgmma_rs<kType, P::kTilePixels, Major::kK>(d, filters.fragment[tap][step], advanced(tap_pixels, step * 32),
                                                       i + step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
}

// More of either: one slice of one phase. `use` counts the stages of weights.
template <class P, ElementType kType>
DEVICE void multiply_phase_slice(float (&d)[P::kFilterTiles][P::kAccumulators], int consumer, int slot, int phase,
                                 bool first_slice, int& use) {
    uint64_t pixels = advanced(pixel_matrix<P>(slot), P::first_row(consumer) * P::kGroupBytes);
    int taps = P::tap_count(phase);
#pragma unroll 1
    for (int i = 0; i < taps; ++i) {
        uint64_t tap_pixels = advanced(pixels, P::pixels_offset(P::tap(phase, i)));
#pragma unroll
        for (int tile = 0; tile < P::kFilterTiles; ++tile, ++use) {
            Turn at = turn<P::kStages>(use);
            mbarrier_wait(P::weights_full(at.slot), at.parity);
            wgmma_fence();
            multiply_tap<P, kType>(d[tile], P::weights(at.slot) + P::first_channel(consumer) * kPixelBytes, tap_pixels,
                                   !first_slice || i > 0);
            wgmma_commit();
            wgmma_wait<1>();  // of this slice, all but the products just issued
            if (i + tile > 0) release(P::weights_empty(turn<P::kStages>(use - 1).slot));
        }
    }
    wgmma_wait<0>();
    release(P::weights_empty(turn<P::kStages>(use - 1).slot));
}

// ---- consumers ----

// 64 channels to 64: the consumers take turns with the tiles, so that one multiplies while the other is in its
// epilogue.
template <class P, ElementType kType, int kPhase = 0>
DEVICE void consume_phases(const DgradParameters& parameters, Consumer& consumer, const Filters& filters,
                           const Tile& tile, int slot) {
    if (!extents_of<P>(parameters.arguments, kPhase).empty()) {
        open_phase<P>(parameters, consumer, tile, kPhase, 0);
        float d[P::kAccumulators];
        multiply_phase<P, kType, kPhase>(d, filters, slot);
        if (kPhase == P::kPhases - 1) release(P::halo_empty(slot));
        finish_phase<P, kType>(d, parameters, consumer, tile, kPhase, 0);
    } else if (kPhase == P::kPhases - 1) {
        release(P::halo_empty(slot));
    }
    if constexpr (kPhase < P::kPhases - 1)
        consume_phases<P, kType, kPhase + 1>(parameters, consumer, filters, tile, slot);
}

template <class P, ElementType kType>
DEVICE void consume_gradient_tiles(const DgradParameters& parameters, Consumer& consumer) {
    const Problem& problem = parameters.arguments.tiles.problem;
    Filters filters = take_filters<P>(consumer.thread);
    int use = consumer.index;
    for (int index = block_index() + consumer.index * block_count(); index < P::tile_count(problem);
         index += kConsumers * block_count(), use += kConsumers) {
        Turn at = turn<P::kSlots>(use);
        mbarrier_wait(P::halo_normalized(at.slot), at.parity);
        consume_phases<P, kType>(parameters, consumer, filters, tile_at<P>(problem, index), at.slot);
    }
}

// More of either: both consumers work on one tile, each on 64 of every 128 channels of dx, or on half of its rows where
// there are no more than 64.
template <class P, ElementType kType>
DEVICE void consume_channels(const DgradParameters& parameters, Consumer& consumer) {
    const DgradArguments& arguments = parameters.arguments;
    const Problem& problem = arguments.tiles.problem;
    int weights_use = 0, first_use = 0;
    for (int index = block_index(); index < P::tile_count(problem); index += block_count(), first_use += P::kSlices) {
        Tile tile = tile_at<P>(problem, index);
        tile.row += P::first_row(consumer.index);
        int left = P::kPhases;  // phases that still read the slices
        while (left > 1 && extents_of<P>(arguments, left - 1).empty()) --left;
#pragma unroll 1
        for (int phase = 0; phase < left; ++phase) {
            if (extents_of<P>(arguments, phase).empty()) continue;
            open_phase<P>(parameters, consumer, tile, phase, P::first_channel(consumer.index));
            float d[P::kFilterTiles][P::kAccumulators];
#pragma unroll 1
            for (int slice = 0; slice < P::kSlices; ++slice) {
                Turn at = turn<P::kSlots>(first_use + slice);
                mbarrier_wait(P::halo_normalized(at.slot), at.parity);
                multiply_phase_slice<P, kType>(d, consumer.index, at.slot, phase, slice == 0, weights_use);
                if (phase == left - 1) release(P::halo_empty(at.slot));
            }
#pragma unroll
            for (int i = 0; i < P::kFilterTiles; ++i) {
                int channel = i * kConsumers * kFilterTile + P::first_channel(consumer.index);
                if (i > 0) open_phase<P>(parameters, consumer, tile, phase, channel);
                finish_phase<P, kType>(d[i], parameters, consumer, tile, phase, channel);
            }
        }
    }
}

// ---- roles ----

template <class P>
DEVICE void prepare_gradients() {
    if (thread_index() == 0) {
        for (int slot = 0; slot < P::kSlots; ++slot) {
            mbarrier_init(P::halo_full(slot), 1);
            mbarrier_init(P::halo_normalized(slot), Normalizers<P>::kThreads);
            mbarrier_init(P::halo_empty(slot), kConsumerWarps * (P::kWeightsInRegisters ? 1 : kConsumers));
        }
        for (int slot = 0; slot < P::kZSlots; ++slot) mbarrier_init(P::z_empty(slot), Normalizers<P>::kThreads);
        for (int stage = 0; stage < P::kStages; ++stage) {
            mbarrier_init(P::weights_full(stage), 1);
            mbarrier_init(P::weights_empty(stage), kConsumers * kConsumerWarps);
        }
        for (int consumer = 0; consumer < kConsumers; ++consumer) mbarrier_init(P::residual_full(consumer), 1);
        mbarrier_init(P::filters_full(), 1);
        mbarrier_init(P::filters_taken(), kConsumers * kWarpgroup);
        mbarrier_init_fence();
    }
    for (int i = thread_index(); i < P::kMomentSets * P::kDxChannels; i += kThreads)
        store_shared(P::sums(0, i), Sums{});
    cta_sync();
}

template <class P, ElementType kType>
DEVICE void produce_gradients(const DgradParameters& parameters) {
    int warp = warp_uniform(thread_index() / 32);
    if (warp == kHaloWarp) {
        if constexpr (P::kWeightsInRegisters) load_filters<P>(parameters.weights);
        load_gradients<P>(parameters);
    } else if (warp < Normalizers<P>::kFirstWarp) {
        if constexpr (!P::kWeightsInRegisters)
            if (lane_index() == 0) stream_phases<P>(parameters);
    } else {
        make_gradients<P, kType>(parameters.arguments);
    }
}

template <class P, ElementType kType>
DEVICE void consume_gradients(const DgradParameters& parameters, int index) {
    Consumer consumer(index);
    if constexpr (P::kWeightsInRegisters)
        consume_gradient_tiles<P, kType>(parameters, consumer);
    else
        consume_channels<P, kType>(parameters, consumer);
    if (consumer.thread == 0) tma_store_wait_read();
    if (parameters.arguments.partials) write_sums<P>(parameters.arguments, consumer);
}

template <ElementType kType, int kChannels, int kFilters, int kStride, bool kBlockBelow>
__global__ void __launch_bounds__(kThreads, 1)
    conv3x3_halo_dgrad_kernel(const __grid_constant__ DgradParameters parameters) {
    using P = DgradPlan<kChannels, kFilters, kStride, kBlockBelow>;
    prepare_gradients<P>();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<P::kProducerRegisters>();
        produce_gradients<P, kType>(parameters);
    } else {
        register_budget_increase<P::kConsumerRegisters>();
        consume_gradients<P, kType>(parameters, warpgroup - 1);
    }
}

}  // namespace conv3x3_halo_dgrad
