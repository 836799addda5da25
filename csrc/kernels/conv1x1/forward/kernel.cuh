// conv1x1: 1x1 convolution of stride 1 or 2, C -> K channels, both multiples of 8, NHWC float16 or bfloat16, float32
// accumulation, for sm_90a: a GEMM, gemm_m = pixels, gemm_n = filters, gemm_k = channels.
//
//     out = epilogue(prologue(input) weights^T)
//     prologue    nothing, or relu(x * in_scale + in_shift) rounded to x's type
//     epilogue    act(z * scale + shift + residual), or z and, per filter, (count, mean, M2) of z as rounded
//
// Every block loops over tiles of 128 pixels by 64 or 128 filters (plan.cuh). One thread of warpgroup 0 keeps a ring of
// stages full, each 64 channels of the tile's pixels and of its filters (load.cuh). Two consumer warpgroups take turns
// with the tiles, so that one multiplies (multiply.cuh) while the other is in its epilogue (epilogue.cuh). The pixels
// are operand A, from shared memory, or, where the prologue turns them into something else on the way, from registers.
// Where the tiles are too few for the GPU, several blocks share one, each with some of its channels; the last of them
// to finish adds up what all of them left, in a fixed order.
#pragma once
#include "kernels/conv1x1/forward/epilogue.cuh"
#include "kernels/conv1x1/forward/load.cuh"
#include "kernels/conv1x1/forward/multiply.cuh"

namespace conv1x1 {

template <class V>
DEVICE void prepare() {
    if (thread_index() == 0) {
        for (int stage = 0; stage < V::kStages; ++stage) {
            mbarrier_init(V::full(stage), 1);
            mbarrier_init(V::empty(stage), kWarps);
        }
        for (int consumer = 0; consumer < kConsumers; ++consumer) {
            mbarrier_init(V::residual_full(consumer), 1);
            mbarrier_init(V::may_multiply(consumer), kWarps);
        }
        mbarrier_init_fence();
    }
    cta_sync();
}

template <class V>
DEVICE void consume(const Parameters& parameters, int index) {
    const Arguments& arguments = parameters.arguments;
    const Problem& problem = arguments.problem;
    Consumer consumer(index);
    bool is_split = V::kSplits && problem.splits > 1;
    int first_use = index * work_slices(problem, block_index()), finished = 0;
    int step = kConsumers * block_count(), first = block_index() + index * block_count();
    for (int at = first; at < V::work_count(problem); at += step) {
        Work work = V::work_at(problem, at);
        int slices = work_slices(problem, at);
        if (!is_split && consumer.thread == 0) open_output<V>(parameters, work, consumer);
        Accumulators<V> d;
        await_turn<V>(consumer, (at - first) / step);
        multiply<V>(d, arguments, work.first_slice, slices, first_use, consumer);
        first_use += slices + work_slices(problem, at + block_count());
        if (is_split) {
            if (!join_splits<V>(d, arguments, work, consumer)) continue;
            if (consumer.thread == 0) open_output<V>(parameters, work, consumer);
        }
        finish<V>(d, parameters, work, consumer, finished++);
    }
    if (consumer.thread == 0) tma_store_wait_read();
}

template <ElementType kType, int kFilters, Epilogue kEpilogue, bool kPrologue>
__global__ void __launch_bounds__(kThreads, 1) conv1x1_kernel(const __grid_constant__ Parameters parameters) {
    using V = Variant<kType, kFilters, kEpilogue, kPrologue>;
    prepare<V>();
    launch_next_grid();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<24>();
        if (thread_index() == 0) produce<V>(parameters);
    } else {
        register_budget_increase<240>();
        wait_for_previous_grid();
        consume<V>(parameters, warpgroup - 1);
    }
}

}  // namespace conv1x1
