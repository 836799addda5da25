// conv1x1_backward: both gradients of a 1x1 convolution of stride 1 from one read of every map, up to 256 -> 64
// channels, both multiples of 8, NHWC float16 or bfloat16, float32 accumulation, for sm_90a.
//
//     dz = a * g + b * z + c                     rounded; the backward of the convolution's own batch norm
//     dx = dz weight + skip where not skip_out <= 0,
//          where not x <= 0 if x is rectified, else 0
//     dW = sum over pixels of dz^T x             float32, a row of partials from each block
//
// A tile's dz is made once. x comes in slices of 64 channels, each with its skip: products, epilogue, and dx leaves
// from where x was. The weight stays in shared memory, dW in registers. The consumers share a tile's pixels and wait
// for each other only where a slot is given back, and in the end, to add up their products.
//
// The products of 64 filters with 256 channels are 128 registers of a thread, and their weight, a tile's dz and three
// stages all of shared memory: more of either finds no room.
#pragma once
#include "kernels/conv1x1/backward/epilogue.cuh"
#include "kernels/conv1x1/backward/load.cuh"
#include "kernels/conv1x1/backward/multiply.cuh"

namespace conv1x1_backward {

// Once for a warp, all of whose lanes are done.
DEVICE void arrive_as_warp(SmemAddress barrier) {
    warp_sync();
    if (lane_index() == 0) mbarrier_arrive(barrier);
}

template <class V>
DEVICE void consume_slice(float (&dw)[kAccumulators], const BackwardArguments& arguments, int slice, const Turn& at,
                          const Consumer& consumer) {
    float dx[kAccumulators];
    mbarrier_wait(V::full(at.slot), at.parity);
    multiply_slice<V>(dx, dw, slice, at.slot, consumer);
    consumer.sync();  // the other warps' products have read x too
    finish_slice<V>(dx, arguments, at.slot, consumer);
    fence_proxy_async();
    arrive_as_warp(V::finished(at.slot));
}

template <class V>
DEVICE void consume_tiles(const BackwardArguments& arguments, int index) {
    Consumer consumer(index);
    NormVectors norm(arguments, consumer);
    Products dw = {};
    int tile_use = 0, use = 0;
    mbarrier_wait(V::weights_full(), 0);
#pragma unroll 1
    for (int tile = block_index(); tile < arguments.tiles.count(); tile += block_count(), ++tile_use) {
        mbarrier_wait(V::gradient_full(), turn<1>(tile_use).parity);
        make_gradient<V>(arguments, norm, arguments.tiles.first(tile), consumer);
        // dz is for wgmma to read; g and z have been read, and TMA writes there next
        fence_proxy_async();
        arrive_as_warp(V::gradient_empty());
        consumer.sync();
#pragma unroll
        for (int slice = 0; slice < kMaxSlices; ++slice)
            if (slice < arguments.slices())
                consume_slice<V>(dw.of_slice[slice], arguments, slice, turn<V::kStages>(use++), consumer);
    }
    finish_products<V>(dw, arguments, consumer);
}

template <class V>
DEVICE void prepare_stages() {
    if (thread_index() == 0) {
        mbarrier_init(V::weights_full(), 1);
        mbarrier_init(V::gradient_full(), 1);
        mbarrier_init(V::gradient_empty(), kConsumerWarps);
        for (int stage = 0; stage < V::kStages; ++stage) {
            mbarrier_init(V::full(stage), 1);
            mbarrier_init(V::finished(stage), kConsumerWarps);
            mbarrier_init(V::empty(stage), 1);
        }
        mbarrier_init_fence();
    }
    cta_sync();
}

template <ElementType kType>
__global__ void __launch_bounds__(kThreads, 1)
    conv1x1_backward_kernel(const __grid_constant__ BackwardParameters parameters) {
    using V = BackwardVariant<kType>;
    prepare_stages<V>();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<24>();
        if (thread_index() == 0) load_gradients<V>(parameters);
        if (thread_index() == 32) load_stages<V>(parameters);
        if (thread_index() == 64) store_stages<V>(parameters);
    } else {
        register_budget_increase<240>();
        consume_tiles<V>(parameters.arguments, warpgroup - 1);
    }
}

}  // namespace conv1x1_backward
