// How a pass over a feature map is divided among blocks and threads, and how a block sums over its pixels.
//
// The map is a matrix of pixels by chunks of eight channels. A block of 256 threads is `rows` pixels by `columns`
// chunks of it; it goes down a tile of consecutive pixels, `rows` at a time, while each thread keeps to its channels,
// whose vectors then stay in registers. Neighbouring threads take neighbouring chunks, so that a warp's access is
// contiguous.
#pragma once
#include "device/global.cuh"

namespace kernels {

constexpr int kThreads = 256;
constexpr int kMaxColumnsLog2 = 5;  // 32 chunks: a warp on one pixel

struct MapTiles {
    int pixels;
    int channels;
    int tile_pixels;
    int columns_log2;

    HOST_DEVICE int columns() const { return 1 << columns_log2; }
    HOST_DEVICE int rows() const { return kThreads >> columns_log2; }
    HOST_DEVICE int tiles() const { return (pixels + tile_pixels - 1) / tile_pixels; }
    HOST_DEVICE int column_groups() const { return (channels / kChunkChannels + columns() - 1) >> columns_log2; }
    HOST_DEVICE int blocks() const { return tiles() * column_groups(); }
};

// The narrowest block that takes a pixel's channels at once, up to a warp's width.
HOST_DEVICE inline int columns_log2_for(int channels) {
    int log2 = 0;
    while (log2 < kMaxColumnsLog2 && (kChunkChannels << log2) < channels) ++log2;
    return log2;
}

// Tiles of `batches` pixels a thread.
HOST_DEVICE inline MapTiles tiles_of_batches(int pixels, int channels, int batches) {
    int log2 = columns_log2_for(channels);
    return {pixels, channels, batches * (kThreads >> log2), log2};
}

// Tiles of `tile_pixels` each.
HOST_DEVICE inline MapTiles tiles_of_pixels(int pixels, int channels, int tile_pixels) {
    return {pixels, channels, tile_pixels, columns_log2_for(channels)};
}

// What one thread works on: pixels first, first + rows, ... below end, at one chunk.
struct Place {
    int tile;
    int row;
    int channel;  // the first of the chunk
    int first, end;
    bool inside;  // the chunk is one of the map's
};

DEVICE Place place_of(const MapTiles& tiles) {
    int column = thread_index() & (tiles.columns() - 1);
    int row = thread_index() >> tiles.columns_log2;
    int tile = block_index() / tiles.column_groups();
    int group = block_index() % tiles.column_groups();
    int channel = ((group << tiles.columns_log2) + column) * kChunkChannels;
    int begin = tile * tiles.tile_pixels;
    bool inside = channel < tiles.channels;
    int end = begin + tiles.tile_pixels < tiles.pixels ? begin + tiles.tile_pixels : tiles.pixels;
    return {tile, row, channel, begin + row, inside ? end : 0, inside};
}

// Fewer than 2^31 elements are checked before the launch, so an offset fits an int.
DEVICE int offset_of(const MapTiles& tiles, int pixel, const Place& place) {
    return pixel * tiles.channels + place.channel;
}

// ---- sums over a block's pixels ----

// Of shared memory: for one block_sum at a time; for the merging of statistics and the adding of sums in
// statistics.cuh.
constexpr uint32_t kSumBytes = kThreads * sizeof(Floats8);
constexpr uint32_t kMomentsBytes = 3 * kThreads * sizeof(Floats4);
constexpr uint32_t kVectorSumBytes = kThreads * sizeof(Floats4);

// Two planes of 16 bytes a thread, so that a warp's access touches every bank equally often.
DEVICE SmemAddress sum_address(int thread, int half) {
    return smem_base() + (half * kThreads + thread) * static_cast<uint32_t>(sizeof(Floats4));
}

DEVICE void put(int thread, const Floats8& values) {
    const float* v = values.value;
    store_shared(sum_address(thread, 0), Floats4{{v[0], v[1], v[2], v[3]}});
    store_shared(sum_address(thread, 1), Floats4{{v[4], v[5], v[6], v[7]}});
}

DEVICE Floats8 get(int thread) {
    Floats4 low = load_shared<Floats4>(sum_address(thread, 0)), high = load_shared<Floats4>(sum_address(thread, 1));
    return {{low.value[0], low.value[1], low.value[2], low.value[3], high.value[0], high.value[1], high.value[2],
             high.value[3]}};
}

// The sum over the block's rows, in every thread; added pairwise, in the same order whatever the warps' timing.
DEVICE Floats8 block_sum(const MapTiles& tiles, Floats8 sum, int row) {
    put(thread_index(), sum);
    for (int step = tiles.rows() / 2; step > 0; step /= 2) {
        cta_sync();
        if (row >= step) continue;
        Floats8 other = get(thread_index() + (step << tiles.columns_log2));
#pragma unroll
        for (int i = 0; i < kChunkChannels; ++i) sum.value[i] += other.value[i];
        put(thread_index(), sum);
    }
    cta_sync();
    Floats8 total = get(thread_index() & (tiles.columns() - 1));
    cta_sync();
    return total;
}

// Sums over pixels of g and of g * (z - mean), as the norm's backward needs them.
struct GradientSums {
    Floats8 g = {}, gz = {};

    DEVICE void add(const Floats8& gradient, const Floats8& z, const Floats8& mean) {
#pragma unroll
        for (int i = 0; i < kChunkChannels; ++i) {
            g.value[i] += gradient.value[i];
            gz.value[i] = fmaf(gradient.value[i], z.value[i] - mean.value[i], gz.value[i]);
        }
    }

    // The tile's two rows of partials (tiles, 2, K).
    DEVICE void store(float* partials, const MapTiles& tiles, const Place& place) const {
        Floats8 total = block_sum(tiles, g, place.row), total_z = block_sum(tiles, gz, place.row);
        if (place.row > 0 || !place.inside) return;
        float* at = partials + int64_t{2} * place.tile * tiles.channels + place.channel;
        store_floats8(at, total);
        store_floats8(at + tiles.channels, total_z);
    }
};

}  // namespace kernels
