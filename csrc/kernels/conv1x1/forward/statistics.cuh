// conv1x1, consumers: count, mean and M2 of a tile's pixels for each of its filters.
//
// Mean first, then squared deviations from it: never a difference of large sums. A warp has 32 of the tile's pixels;
// the four warps' moments are merged in their order, so that nothing depends on who comes first.
#pragma once
#include "kernels/conv1x1/forward/plan.cuh"

namespace conv1x1 {

struct alignas(8) Moments {
    float mean, m2;
};

// Chan, Golub and LeVeque 1983: the moments of both sets together.
DEVICE Moments merged(const Moments& a, float a_count, const Moments& b, float b_count) {
    if (b_count == 0) return a;
    if (a_count == 0) return b;
    float delta = b.mean - a.mean, share = b_count / (a_count + b_count);
    return {a.mean + delta * share, a.m2 + b.m2 + delta * delta * a_count * share};
}

// Over the eight lanes that share their filters.
DEVICE float sum_of_lanes(float value) {
    value += shuffle_xor(value, 4);
    value += shuffle_xor(value, 8);
    return value + shuffle_xor(value, 16);
}

// Which of the thread's four pixels exist: bit 2 * block + half.
DEVICE uint32_t existing_pixels(const Tiles& tiles, const Work& work, const Consumer& consumer) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i)
        bits |= uint32_t{tiles.inside(work.pixels, consumer.pixel(i / 2, i % 2))} << i;
    return bits;
}

// A tile as it was stored: the pairs of accumulators, rounded.
template <class V>
struct Rounded {
    uint32_t pair[kRowBlocks][V::kAccumulators / 2];
};

// Of two neighbouring filters, whose first pair is `pair`.
template <class V>
DEVICE void warp_moments(const Rounded<V>& z, int pair, uint32_t exists, float count, Moments (&result)[2]) {
    Floats2 values[2 * kRowBlocks];
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i) values[i] = unpack<V::kType>(z.pair[i / 2][pair + i % 2]);
#pragma unroll
    for (int filter = 0; filter < 2; ++filter) {
        float sum = 0, m2 = 0;
#pragma unroll
        for (int i = 0; i < 2 * kRowBlocks; ++i)
            if (exists >> i & 1) sum += values[i].value[filter];
        sum = sum_of_lanes(sum);
        float mean = count > 0 ? sum / count : 0.0f;
#pragma unroll
        for (int i = 0; i < 2 * kRowBlocks; ++i) {
            float deviation = values[i].value[filter] - mean;
            if (exists >> i & 1) m2 = fmaf(deviation, deviation, m2);
        }
        result[filter] = {mean, sum_of_lanes(m2)};
    }
}

template <class V>
DEVICE void write_partials(const Rounded<V>& z, const Arguments& arguments, const Work& work,
                           const Consumer& consumer) {
    uint32_t exists = existing_pixels(arguments.problem.tiles, work, consumer);
    float count = 0;
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i) count += static_cast<float>(exists >> i & 1);
    count = sum_of_lanes(count);
    if (lane_index() == 0) store_shared(V::count(consumer.index, consumer.warp), count);
#pragma unroll
    for (int eight = 0; eight < V::kFilters / 8; ++eight) {
        Moments moments[2];
        warp_moments<V>(z, 2 * eight, exists, count, moments);
        if (lane_index() >= 4) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            store_shared(V::moments(consumer.index, consumer.warp, 8 * eight + consumer.column() + i), moments[i]);
    }
    consumer.sync();
    int filter = work.first_filter + consumer.thread, filters = arguments.problem.filters;
    if (consumer.thread >= V::kFilters || filter >= filters) return;
    Moments total = {};
    float pixels = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
        float more = load_shared<float>(V::count(consumer.index, warp));
        total = merged(total, pixels, load_shared<Moments>(V::moments(consumer.index, warp, consumer.thread)), more);
        pixels += more;
    }
    float* row = arguments.partials + static_cast<int64_t>(work.pixel_tile) * 3 * filters + filter;
    row[0] = pixels;
    row[filters] = total.mean;
    row[2 * filters] = total.m2;
}

}  // namespace conv1x1
