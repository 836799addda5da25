// From partial sums to what batch norm is made of, always in the same order.
//
// Statistics travel as partials (rows, 3, K): count, mean and M2 (the sum of squared deviations from that mean) of some
// pixels, merged as Chan, Golub and LeVeque 1983 have it. A row of count 0 changes nothing.
#pragma once
#include "kernels/passes/map_tiles.cuh"

namespace kernels {

// ---- a block of 8 vectors of four channels by 32 rows of partials ----

constexpr int kVectorChannels = 4;
constexpr int kVectors = 8;
constexpr int kRows = kThreads / kVectors;

struct Moments {
    Floats4 count = {}, mean = {}, m2 = {};
};

DEVICE void merge(Moments& into, const Moments& other) {
#pragma unroll
    for (int c = 0; c < kVectorChannels; ++c) {
        float count = into.count.value[c], added = other.count.value[c];
        if (added == 0.0f) continue;
        float total = count + added;
        float delta = other.mean.value[c] - into.mean.value[c];
        float share = added / total;
        float spread = count == 0.0f ? 0.0f : delta * delta * count * share;
        into.m2.value[c] += other.m2.value[c] + spread;
        into.mean.value[c] = count == 0.0f ? other.mean.value[c] : fmaf(delta, share, into.mean.value[c]);
        into.count.value[c] = total;
    }
}

DEVICE Moments load_moments(const float* row, int channels) {
    return {load_global(row), load_global(row + channels), load_global(row + 2 * channels)};
}

static_assert(kMomentsBytes == kThreads * sizeof(Moments));

DEVICE SmemAddress moments_address(int thread, int plane) {
    return smem_base() + (plane * kThreads + thread) * static_cast<uint32_t>(sizeof(Floats4));
}
DEVICE void put_moments(int thread, const Moments& moments) {
    store_shared(moments_address(thread, 0), moments.count);
    store_shared(moments_address(thread, 1), moments.mean);
    store_shared(moments_address(thread, 2), moments.m2);
}
DEVICE Moments get_moments(int thread) {
    return {load_shared<Floats4>(moments_address(thread, 0)), load_shared<Floats4>(moments_address(thread, 1)),
            load_shared<Floats4>(moments_address(thread, 2))};
}

// The block's rows merged pairwise; right in row 0.
DEVICE Moments block_merge(Moments moments, int row) {
    put_moments(thread_index(), moments);
    for (int step = kRows / 2; step > 0; step /= 2) {
        cta_sync();
        if (row >= step) continue;
        merge(moments, get_moments(thread_index() + step * kVectors));
        put_moments(thread_index(), moments);
    }
    return moments;
}

// Rows first, first + kRows, ... below end of partials, merged over the block.
DEVICE Moments merged_rows(const float* partials, int channels, int channel, int first, int end) {
    Moments moments;
    int row = thread_index() / kVectors;
    if (channel < channels)
        for (int at = first + row; at < end; at += kRows)
            merge(moments, load_moments(partials + int64_t{3} * at * channels + channel, channels));
    return block_merge(moments, row);
}

DEVICE int vector_channel(int group) { return (group * kVectors + thread_index() % kVectors) * kVectorChannels; }

HOST_DEVICE inline int vector_groups(int channels) { return (channels / kVectorChannels + kVectors - 1) / kVectors; }

// ---- many rows of partials to few ----

struct MergePartials {
    const float* partials;  // (rows, 3, K)
    float* merged;          // (merged_rows, 3, K)
    int rows, merged_rows, channels;

    HOST_DEVICE int blocks() const { return merged_rows * vector_groups(channels); }
};

__global__ void __launch_bounds__(kThreads) merge_partials(const __grid_constant__ MergePartials p) {
    int groups = vector_groups(p.channels), into = block_index() / groups;
    int channel = vector_channel(block_index() % groups);
    int run = (p.rows + p.merged_rows - 1) / p.merged_rows, first = into * run;
    Moments moments = merged_rows(p.partials, p.channels, channel, first, first + run < p.rows ? first + run : p.rows);
    if (thread_index() >= kVectors || channel >= p.channels) return;
    float* row = p.merged + int64_t{3} * into * p.channels + channel;
    store_global(row, moments.count);
    store_global(row + p.channels, moments.mean);
    store_global(row + 2 * p.channels, moments.m2);
}

// ---- statistics, scale and shift ----

struct BnFinalize {
    const float* partials;   // (rows, 3, K)
    const float* bn_weight;  // null for ones
    const float* bn_bias;    // null for zeros
    float *mean, *var, *invstd, *scale, *shift;
    float eps;
    int rows, channels;

    HOST_DEVICE int blocks() const { return vector_groups(channels); }
};

__global__ void __launch_bounds__(kThreads) bn_finalize(const __grid_constant__ BnFinalize p) {
    int channel = vector_channel(block_index());
    Moments moments = merged_rows(p.partials, p.channels, channel, 0, p.rows);
    if (thread_index() >= kVectors || channel >= p.channels) return;
    Floats4 weight = {{1.0f, 1.0f, 1.0f, 1.0f}}, bias = {};
    if (p.bn_weight != nullptr) weight = load_global(p.bn_weight + channel);
    if (p.bn_bias != nullptr) bias = load_global(p.bn_bias + channel);
    Floats4 var, invstd, scale, shift;
#pragma unroll
    for (int c = 0; c < kVectorChannels; ++c) {
        var.value[c] = moments.m2.value[c] / fmaxf(moments.count.value[c], 1.0f);
        invstd.value[c] = 1.0f / sqrtf(var.value[c] + p.eps);
        scale.value[c] = weight.value[c] * invstd.value[c];
        shift.value[c] = fmaf(-moments.mean.value[c], scale.value[c], bias.value[c]);
    }
    store_global(p.mean + channel, moments.mean);
    store_global(p.var + channel, var);
    store_global(p.invstd + channel, invstd);
    store_global(p.scale + channel, scale);
    store_global(p.shift + channel, shift);
}

// ---- sums of a backward ----

struct SumPartials {
    const float* partials;  // (rows, 2, K)
    float* first;           // (K,) each
    float* second;
    int rows, channels;

    HOST_DEVICE int blocks() const { return vector_groups(2 * channels); }
};

__global__ void __launch_bounds__(kThreads) sum_partials(const __grid_constant__ SumPartials p) {
    int column = vector_channel(block_index()), row = thread_index() / kVectors;
    bool inside = column < 2 * p.channels;
    Floats4 sum = {};
    for (int at = row; inside && at < p.rows; at += kRows) {
        Floats4 added = load_global(p.partials + int64_t{2} * at * p.channels + column);
#pragma unroll
        for (int c = 0; c < kVectorChannels; ++c) sum.value[c] += added.value[c];
    }
    store_shared(moments_address(thread_index(), 0), sum);
    for (int step = kRows / 2; step > 0; step /= 2) {
        cta_sync();
        if (row >= step) continue;
        Floats4 other = load_shared<Floats4>(moments_address(thread_index() + step * kVectors, 0));
#pragma unroll
        for (int c = 0; c < kVectorChannels; ++c) sum.value[c] += other.value[c];
        store_shared(moments_address(thread_index(), 0), sum);
    }
    if (row > 0 || !inside) return;
    store_global(column < p.channels ? p.first + column : p.second + column - p.channels, sum);
}

// ---- the statistics of a map whose convolution left none ----

constexpr int kStatsPixels = 128;  // to a row of partials

struct ChannelStats {
    const uint16_t* z;  // (pixels, K)
    float* partials;    // (tiles, 3, K)
    MapTiles tiles;
};

template <ElementType kType>
__global__ void __launch_bounds__(kThreads) channel_stats(const __grid_constant__ ChannelStats p) {
    Place place = place_of(p.tiles);
    Floats8 sum = {}, squares = {}, mean, count;
#pragma unroll 4
    for (int pixel = place.first; pixel < place.end; pixel += p.tiles.rows()) {
        Floats8 z = widen<kType>(load_global(p.z + offset_of(p.tiles, pixel, place)));
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) sum.value[c] += z.value[c];
    }
    Floats8 total = block_sum(p.tiles, sum, place.row);
    float pixels = static_cast<float>(place.end - (place.first - place.row));
#pragma unroll
    for (int c = 0; c < kChunkChannels; ++c) {
        mean.value[c] = total.value[c] / pixels;
        count.value[c] = pixels;
    }
    // once more over the tile, which the cache holds: nothing cancels, however large the mean is beside the deviation
#pragma unroll 4
    for (int pixel = place.first; pixel < place.end; pixel += p.tiles.rows()) {
        Floats8 z = widen<kType>(load_global(p.z + offset_of(p.tiles, pixel, place)));
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) {
            float deviation = z.value[c] - mean.value[c];
            squares.value[c] = fmaf(deviation, deviation, squares.value[c]);
        }
    }
    Floats8 m2 = block_sum(p.tiles, squares, place.row);
    if (place.row > 0 || !place.inside) return;
    float* row = p.partials + int64_t{3} * place.tile * p.tiles.channels + place.channel;
    store_floats8(row, count);
    store_floats8(row + p.tiles.channels, mean);
    store_floats8(row + 2 * p.tiles.channels, m2);
}

}  // namespace kernels
