// The mean of each image's pixels, added up in float32.
#pragma once
#include "kernels/passes/map_tiles.cuh"

namespace kernels {

struct GlobalAvgPool {
    const uint16_t* x;  // (N, H * W, C)
    uint16_t* y;        // (N, C)
    MapTiles tiles;     // a tile is an image
};

template <ElementType kType>
__global__ void __launch_bounds__(kThreads) global_avg_pool(const __grid_constant__ GlobalAvgPool p) {
    launch_next_grid();
    wait_for_previous_grid();
    Place place = place_of(p.tiles);
    Floats8 sum = {};
#pragma unroll 4
    for (int pixel = place.first; pixel < place.end; pixel += p.tiles.rows()) {
        Floats8 x = widen<kType>(load_ordered(p.x + offset_of(p.tiles, pixel, place)));
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) sum.value[c] += x.value[c];
    }
    Floats8 mean = block_sum(p.tiles, sum, place.row);
    if (place.row > 0 || !place.inside) return;
#pragma unroll
    for (int c = 0; c < kChunkChannels; ++c) mean.value[c] /= static_cast<float>(p.tiles.tile_pixels);
    store_global(p.y + place.tile * p.tiles.channels + place.channel, narrow<kType>(mean));
}

}  // namespace kernels
