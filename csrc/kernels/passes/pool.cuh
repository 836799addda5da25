// The stem behind its convolution: maxpool(relu(z * scale + shift)) with the place of each maximum, and back.
#pragma once
#include "kernels/passes/map_tiles.cuh"

namespace kernels {

struct PoolWindow {
    int images, height, width;    // of z
    int out_height, out_width;    // of the pooled map
    int kernel, stride, padding;  // of the square window
};

// relu(z * scale + shift) in the map's own precision, so that ties fall, and masks close, as where it was stored.
template <ElementType kType>
DEVICE Floats8 activated(const Chunk& z, const Floats8& scale, const Floats8& shift) {
    return widen<kType>(narrow<kType>(scale_shift_relu(widen<kType>(z), scale, shift)));
}

// ---- forward ----

struct BnReluMaxpool {
    const uint16_t* z;  // (N, H, W, K)
    const float* scale;
    const float* shift;
    uint16_t* y;      // (N, P, Q, K)
    uint8_t* argmax;  // (N, P, Q, K): row * kernel + column in the window
    MapTiles tiles;   // of y
    PoolWindow window;
};

// kKernel is the window's extent, or 0 where it is only known when launched.
template <ElementType kType, int kKernel>
__global__ void __launch_bounds__(kThreads) bn_relu_maxpool(const __grid_constant__ BnReluMaxpool p) {
    Place place = place_of(p.tiles);
    if (!place.inside) return;
    const PoolWindow& w = p.window;
    const int kernel = kKernel > 0 ? kKernel : w.kernel;
    Floats8 scale = load_floats8(p.scale + place.channel), shift = load_floats8(p.shift + place.channel);
    for (int pixel = place.first; pixel < place.end; pixel += p.tiles.rows()) {
        int q = pixel % w.out_width, line = pixel / w.out_width;
        int top = line % w.out_height * w.stride - w.padding, left = q * w.stride - w.padding;
        const uint16_t* image = p.z + line / w.out_height * w.height * w.width * p.tiles.channels + place.channel;
        Floats8 largest;
        uint64_t argmax = 0;
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) largest.value[c] = -INFINITY;
#pragma unroll
        for (int tap = 0; tap < kernel * kernel; ++tap) {
            int row = top + tap / kernel, column = left + tap % kernel;
            if (row < 0 || row >= w.height || column < 0 || column >= w.width) continue;
            Chunk z = load_global(image + (row * w.width + column) * p.tiles.channels);
            Floats8 value = activated<kType>(z, scale, shift);
#pragma unroll
            for (int c = 0; c < kChunkChannels; ++c) {
                // of equal values the first, of NaNs the last
                bool better = value.value[c] > largest.value[c] || value.value[c] != value.value[c];
                if (!better) continue;
                largest.value[c] = value.value[c];
                argmax = (argmax & ~(uint64_t{0xFF} << 8 * c)) | static_cast<uint64_t>(tap) << 8 * c;
            }
        }
        int offset = offset_of(p.tiles, pixel, place);
        store_global(p.y + offset, narrow<kType>(largest));
        store_global(p.argmax + offset, argmax);
    }
}

// ---- backward ----

struct BnReluMaxpoolBackward {
    const uint16_t* grad;   // (N, P, Q, K)
    const uint8_t* argmax;  // (N, P, Q, K)
    const uint16_t* z;      // (N, H, W, K)
    const float* scale;
    const float* shift;
    const float* mean;
    uint16_t* g;      // (N, H, W, K)
    float* partials;  // (tiles, 2, K), as bn_act_backward's
    MapTiles tiles;   // of z
    PoolWindow window;
};

// The windows that cover a coordinate: first to last.
struct Windows {
    int first, last;
};
DEVICE Windows windows_over(int coordinate, int kernel, int stride, int padding, int count) {
    int reach = coordinate + padding - kernel + stride;  // below stride: the very first window covers it
    int last = (coordinate + padding) / stride;
    return {reach < stride ? 0 : reach / stride, last < count ? last : count - 1};
}

// What one pixel of z gets: grad of the windows whose maximum it is, gathered in a fixed order.
template <ElementType kType>
DEVICE Floats8 gathered(const BnReluMaxpoolBackward& p, int pixel, int channel) {
    const PoolWindow& w = p.window;
    int column = pixel % w.width, line = pixel / w.width;
    int image = line / w.height, row = line % w.height;
    Windows down = windows_over(row, w.kernel, w.stride, w.padding, w.out_height);
    Windows across = windows_over(column, w.kernel, w.stride, w.padding, w.out_width);
    Floats8 total = {};
    for (int out_row = down.first; out_row <= down.last; ++out_row)
        for (int out_column = across.first; out_column <= across.last; ++out_column) {
            int tap_row = row + w.padding - out_row * w.stride, tap_column = column + w.padding - out_column * w.stride;
            int offset = ((image * w.out_height + out_row) * w.out_width + out_column) * p.tiles.channels + channel;
            uint64_t argmax = load_global(p.argmax + offset);
            Floats8 grad = widen<kType>(load_global(p.grad + offset));
#pragma unroll
            for (int c = 0; c < kChunkChannels; ++c)
                if (static_cast<int>(argmax >> 8 * c & 0xFF) == tap_row * w.kernel + tap_column)
                    total.value[c] += grad.value[c];
        }
    return total;
}

template <ElementType kType>
__global__ void __launch_bounds__(kThreads) bn_relu_maxpool_backward(const __grid_constant__ BnReluMaxpoolBackward p) {
    Place place = place_of(p.tiles);
    Floats8 mean = {}, scale = {}, shift = {};
    if (place.inside) {
        mean = load_floats8(p.mean + place.channel);
        scale = load_floats8(p.scale + place.channel);
        shift = load_floats8(p.shift + place.channel);
    }
    GradientSums sums;
    for (int pixel = place.first; pixel < place.end; pixel += p.tiles.rows()) {
        // load
        int offset = offset_of(p.tiles, pixel, place);
        Chunk z = load_global(p.z + offset);
        Floats8 total = gathered<kType>(p, pixel, place.channel);
        // compute and store
        Floats8 out = activated<kType>(z, scale, shift);
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) total.value[c] = out.value[c] <= 0.0f ? 0.0f : total.value[c];
        Chunk g = narrow<kType>(total);
        store_global(p.g + offset, g);
        sums.add(widen<kType>(g), widen<kType>(z), mean);
    }
    // finish
    sums.store(p.partials, p.tiles, place);
}

}  // namespace kernels
