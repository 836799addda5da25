// Sums of eight channels at a time, over pixels or over rows of partials, by threads that have some of them each.
#pragma once
#include "device/global.cuh"

namespace pixels {

DEVICE void add(Floats8& sum, const Floats8& more) {
#pragma unroll
    for (int i = 0; i < kChunkChannels; ++i) sum.value[i] += more.value[i];
}

// Adds up what kThreads threads have of kChunks groups of eight channels: thread t has some of group t % kChunks.
template <int kThreads, int kChunks>
struct ThreadSums {
    static_assert(kChunks <= 32 && 32 % kChunks == 0);
    static constexpr int kEntries = kThreads / 32 * kChunks;  // one a warp and group
    static constexpr int kBytes = kEntries * static_cast<int>(sizeof(Floats8));

    SmemAddress scratch;  // kBytes
    int barrier;          // named; of the kThreads threads

    // In two planes, so that a warp's access touches every bank equally often.
    DEVICE SmemAddress address(int entry, int half) const {
        return scratch + (half * kEntries + entry) * static_cast<uint32_t>(sizeof(Floats4));
    }

    // The sum over the threads of the thread's group, in a fixed order, in each of them.
    DEVICE Floats8 total(Floats8 own, int thread) const {
        int lane = thread % 32, warp = thread / 32;
#pragma unroll
        for (int mask = kChunks; mask < 32; mask *= 2)
#pragma unroll
            for (int i = 0; i < kChunkChannels; ++i) own.value[i] += shuffle_xor(own.value[i], mask);
        if (lane < kChunks) {
            const float* v = own.value;
            store_shared(address(warp * kChunks + lane, 0), Floats4{{v[0], v[1], v[2], v[3]}});
            store_shared(address(warp * kChunks + lane, 1), Floats4{{v[4], v[5], v[6], v[7]}});
        }
        named_barrier_sync(barrier, kThreads);
        Floats8 sum = {};
#pragma unroll
        for (int entry = lane % kChunks; entry < kEntries; entry += kChunks)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                Floats4 more = load_shared<Floats4>(address(entry, half));
#pragma unroll
                for (int i = 0; i < 4; ++i) sum.value[4 * half + i] += more.value[i];
            }
        named_barrier_sync(barrier, kThreads);
        return sum;
    }
};

}  // namespace pixels
