// conv1x1_dgrad: the gradient of a 1x1 convolution's input, stride 1 or 2, C -> K channels, both multiples of 8, NHWC
// float16 or bfloat16, float32 accumulation, for sm_90a: a GEMM, gemm_m = pixels, gemm_n = channels, gemm_k = filters.
//
//     dz = a * g + b * z + c          rounded; the backward of the convolution's own batch norm
//     dx = dz weight, zero at pixels that the convolution did not read
//          + skip where not skip_out <= 0        at every pixel or every second one
//          where not below_out <= 0 and not below_z * below_scale + below_shift <= 0, else 0
//     partials                        per channel, the sums of dx as rounded and of dx * (below_z - below_mean)
//
// The warpgroups' roles are conv1x1's: one thread loads, and two consumers take turns with tiles of 128 pixels by 128
// channels, one multiplying (multiply.cuh) while the other is in its epilogue (epilogue.cuh). The weight is operand B
// as it lies in memory, channels contiguous.
//
// A pixel's g and z come out of the L2 cache once for every 128 channels: with many filters that, and not memory, is
// what a tile waits for.
#pragma once
#include "kernels/conv1x1/dgrad/epilogue.cuh"
#include "kernels/conv1x1/dgrad/multiply.cuh"

namespace conv1x1_dgrad {

template <class V>
DEVICE void load_stage(const DgradParameters& parameters, const DgradWork& work, int first_filter, int stage) {
    const PhaseMaps& from = parameters.maps[work.phase];
    const Box& at = work.pixels;
    bool has_z = parameters.arguments.norm.b != nullptr;
    SmemAddress full = V::full(stage);
    mbarrier_arrive_expect_tx(full, V::kStageBytes - (has_z ? 0 : kSliceBytes));
    tma_load_4d(V::g(stage), from.g, full, first_filter, at.column, at.row, at.image);
    if (has_z) tma_load_4d(V::z(stage), from.z, full, first_filter, at.column, at.row, at.image);
    for (int slice = 0; slice < kTileSlices; ++slice)
        tma_load_4d(V::weights(stage) + slice * V::kWeightSliceBytes, parameters.weights, full,
                    work.first_channel + slice * kSliceChannels, first_filter, 0, 0);
}

template <class V>
DEVICE void produce_gradients(const DgradParameters& parameters) {
    const DgradArguments& arguments = parameters.arguments;
    int use = 0;
    for (int index = block_index(); index < work_count(arguments); index += block_count()) {
        DgradWork work = work_at(arguments, index);
        for (int slice = 0; slice < arguments.phase[work.phase].slices; ++slice, ++use) {
            Turn at = turn<V::kStages>(use);
            mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
            load_stage<V>(parameters, work, slice * kSliceChannels, at.slot);
        }
    }
}

template <class V>
DEVICE void consume_gradients(const DgradParameters& parameters, int index) {
    const DgradArguments& arguments = parameters.arguments;
    Consumer consumer(index);
    int first_use = index * slices_of(arguments, block_index()), map_uses = 0, turns = 0;
    int step = kConsumers * block_count();
    for (int at = block_index() + index * block_count(); at < work_count(arguments); at += step, ++turns) {
        DgradWork work = work_at(arguments, at);
        int slices = arguments.phase[work.phase].slices;
        if (consumer.thread == 0) open_slices<V>(parameters, work, 0, consumer);
        Accumulators<V> d = {};
        await_turn<V>(consumer, turns);
        if (slices > 0)
            multiply_slices<V>(d, arguments, slices, first_use, consumer);
        else
            pass_turn<V>(consumer);
        first_use += slices + slices_of(arguments, at + block_count());
        finish_tile<V>(d, parameters, work, consumer, map_uses);
    }
    if (consumer.thread == 0) tma_store_wait_read();
}

template <class V>
DEVICE void prepare_gradients() {
    if (thread_index() == 0) {
        for (int stage = 0; stage < V::kStages; ++stage) {
            mbarrier_init(V::full(stage), 1);
            mbarrier_init(V::empty(stage), kWarps);
        }
        for (int consumer = 0; consumer < kConsumers; ++consumer) {
            mbarrier_init(V::maps_full(consumer), 1);
            mbarrier_init(V::may_multiply(consumer), kWarps);
        }
        mbarrier_init_fence();
    }
    cta_sync();
}

template <ElementType kType>
__global__ void __launch_bounds__(kThreads, 1)
    conv1x1_dgrad_kernel(const __grid_constant__ DgradParameters parameters) {
    using V = DgradVariant<kType>;
    prepare_gradients<V>();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<24>();
        if (thread_index() == 0) produce_gradients<V>(parameters);
    } else {
        register_budget_increase<240>();
        consume_gradients<V>(parameters, warpgroup - 1);
    }
}

}  // namespace conv1x1_dgrad
