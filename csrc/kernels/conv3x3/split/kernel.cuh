// conv3x3_halo_split: conv3x3_halo's inference for batches of few and small maps, whose whole tiles with all of their
// filters would leave most multiprocessors idle. For sm_90a.
//
//     out = act(conv(input, weights) * scale + shift + residual)
//
// A block's tile is small, and has 64 filters (plan.cuh). Where such tiles still are too few, several blocks share one,
// each with some of the input channels; the last of them to finish adds up what all of them left, in a fixed order
// (kernels/parts/split_products.cuh). Halo, taps and epilogue are conv3x3_halo's own.
#pragma once
#include "kernels/conv3x3/split/plan.cuh"
#include "kernels/parts/split_products.cuh"

namespace conv3x3_halo_split {

template <class P>
DEVICE void prepare() {
    if (thread_index() == 0) {
        for (int slot = 0; slot < P::kSlots; ++slot) {
            mbarrier_init(P::halo_full(slot), 1);
            mbarrier_init(P::halo_empty(slot), kConsumerWarps);
        }
        for (int stage = 0; stage < P::kStages; ++stage) {
            mbarrier_init(P::weights_full(stage), 1);
            mbarrier_init(P::weights_empty(stage), kConsumerWarps);
        }
        mbarrier_init(P::residual_full(0), 1);
        mbarrier_init_fence();
    }
    cta_sync();
}

// ---- load ----

template <class P>
DEVICE void load_slices(const SplitParameters& parameters) {
    int use = 0;
    for (int index = block_index(); index < work_count<P>(parameters); index += block_count()) {
        Work work = work_at<P>(parameters, index);
        for (int slice = work.first_slice; slice < work.end_slice; ++slice, ++use) {
            Turn at = turn<P::kSlots>(use);
            mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);
            load_slice<P>(parameters.input, parameters.arguments.problem, work.pixels, slice, at.slot);
        }
    }
}

// The weights in the order in which the consumer multiplies by them.
template <class P>
DEVICE void load_weights(const SplitParameters& parameters) {
    int use = 0;
    for (int index = block_index(); index < work_count<P>(parameters); index += block_count()) {
        Work work = work_at<P>(parameters, index);
        for (int slice = work.first_slice; slice < work.end_slice; ++slice)
            for (int tap = 0; tap < kTaps; ++tap, ++use) {
                Turn at = turn<P::kStages>(use);
                mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);
                mbarrier_arrive_expect_tx(P::weights_full(at.slot), kFilterBytes);
                tma_load_4d(P::weights(at.slot), parameters.weights, P::weights_full(at.slot), slice * kSliceChannels,
                            tap, work.first_filter, 0);
            }
    }
}

template <class P>
DEVICE void produce(const SplitParameters& parameters) {
    int warp = warp_uniform(thread_index() / 32);
    if (warp == kHaloWarp) {
        tma_prefetch_map(parameters.input);
        wait_for_previous_grid();
        load_slices<P>(parameters);
    } else if (warp == kWeightsWarp && lane_index() == 0) {
        if (!parameters.arguments.weights_ready) wait_for_previous_grid();
        load_weights<P>(parameters);
    }
}

// ---- multiply, join, finish ----

// The work's slices. `halo_use` and `weights_use` count what all work before has used.
template <class P, ElementType kType>
DEVICE void multiply(float (&d)[P::kFilterTiles][P::kAccumulators], const Work& work, int& halo_use, int& weights_use) {
#pragma unroll 1
    for (int slice = work.first_slice; slice < work.end_slice; ++slice, ++halo_use) {
        Turn at = turn<P::kSlots>(halo_use);
        mbarrier_wait(P::halo_full(at.slot), at.parity);
        multiply_slice<P, kType>(d, 0, at.slot, slice == work.first_slice, weights_use);
        release(P::halo_empty(at.slot));
    }
}

// Whether this split of the tile was the last one to arrive; d then is the sum over all of them.
template <class P>
DEVICE bool join_splits(float (&d)[P::kAccumulators], const SplitParameters& parameters, const Work& work,
                        const Consumer& consumer) {
    int splits = parameters.splits;
    float* products = parameters.products + static_cast<int64_t>(work.tile) * splits * kSplitProducts;
    split_products::store(d, products + work.split * kSplitProducts, consumer.thread);
    if (!split_products::arrives_last(&parameters.arrivals[work.tile], splits, P::flag(), consumer)) return false;
#pragma unroll
    for (int i = 0; i < P::kAccumulators; ++i) d[i] = 0;
    split_products::add(d, products, kSplitProducts, splits, consumer.thread);
    return true;
}

template <class P, ElementType kType>
DEVICE void consume(const SplitParameters& parameters) {
    constexpr Epilogue kEpilogue = Epilogue::kScaleShiftAct;
    Consumer consumer(0);
    bool is_split = parameters.splits > 1;
    int halo_use = 0, weights_use = 0;
    for (int index = block_index(); index < work_count<P>(parameters); index += block_count()) {
        Work work = work_at<P>(parameters, index);
        auto open = [&] {
            if (consumer.thread == 0)
                open_staged<P, kEpilogue>(parameters.residual, parameters.arguments, consumer, work.pixels, 0,
                                          work.first_filter);
        };
        if (!is_split) open();
        float d[P::kFilterTiles][P::kAccumulators];
        multiply<P, kType>(d, work, halo_use, weights_use);
        if (is_split) {
            if (!join_splits<P>(d[0], parameters, work, consumer)) continue;
            open();
        }
        finish<P, kType, kEpilogue>(d[0], parameters, consumer, work.pixels, work.first_filter);
    }
    if (consumer.thread == 0) tma_store_wait_read();
}

template <ElementType kType, int kStride>
__global__ void __launch_bounds__(kSplitThreads, 1)
    conv3x3_halo_split_kernel(const __grid_constant__ SplitParameters parameters) {
    using P = SplitPlan<kStride>;
    prepare<P>();
    launch_next_grid();
    if (thread_index() < kWarpgroup) {
        produce<P>(parameters);
    } else {
        wait_for_previous_grid();
        consume<P, kType>(parameters);
    }
}

}  // namespace conv3x3_halo_split
