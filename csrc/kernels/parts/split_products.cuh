// How blocks that share a tile, each with some of the channels, add up its products: each leaves its accumulator in
// global memory, and the last one to arrive adds all of them in the order of the splits, so that no bit of the sum
// depends on which of them that was. Nobody waits for anybody.
#pragma once
#include "device/gemm.cuh"

namespace split_products {

constexpr int kWarpgroup = 128;              // the threads that hold an accumulator
constexpr int kQuadStride = 4 * kWarpgroup;  // floats between two quads of a thread: a warp's access is contiguous

template <int kCount>
DEVICE void store(const float (&d)[kCount], float* accumulator, int thread) {
    static_assert(kCount % 4 == 0);
    float* to = accumulator + 4 * thread;
#pragma unroll
    for (int i = 0; i < kCount; i += 4, to += kQuadStride)
        store_global(to, Floats4{{d[i], d[i + 1], d[i + 2], d[i + 3]}});
}

// Adds `splits` accumulators, `pitch` floats from one to the next.
template <int kCount>
DEVICE void add(float (&d)[kCount], const float* accumulators, int64_t pitch, int splits, int thread) {
    const float* from = accumulators + 4 * thread;
#pragma unroll 4
    for (int split = 0; split < splits; ++split, from += pitch) {
        Floats4 more[kCount / 4];
#pragma unroll
        for (int quad = 0; quad < kCount / 4; ++quad) more[quad] = load_uncached(from + quad * kQuadStride);
#pragma unroll
        for (int i = 0; i < kCount; ++i) d[i] += more[i / 4].value[i % 4];
    }
}

// A consumer has stored its split of a tile; whether all the others have, too. `arrivals` counts those of the tile.
template <class Consumer>
DEVICE bool arrives_last(uint32_t* arrivals, int splits, SmemAddress flag, const Consumer& consumer) {
    memory_fence_gpu();
    consumer.sync();
    if (consumer.thread == 0) {
        bool is_last = atomic_increment(arrivals) + 1 == uint32_t(splits);
        if (is_last) *arrivals = 0;  // for the next launch
        store_shared(flag, uint32_t{is_last});
    }
    consumer.sync();
    if (!load_shared<uint32_t>(flag)) return false;
    memory_fence_gpu();
    return true;
}

}  // namespace split_products
