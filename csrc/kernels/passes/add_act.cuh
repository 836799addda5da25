// The passes of a batch norm over a map: y = act(z * scale + shift + shortcut(residual)), which ends a block; the one
// that begins its backward, g = grad where out > 0 with the sums that it needs; and that backward itself, dz from g.
#pragma once
#include "kernels/passes/map_tiles.cuh"

namespace kernels {

// ---- forward ----

constexpr int kAddBatch = 4;  // pixels a thread loads before it computes

enum class Residual { kNone, kSame, kOptionA };

struct BnAddAct {
    const uint16_t* z;  // (N, P, Q, K)
    const float* scale;
    const float* shift;
    const uint16_t* residual;  // (N, P, Q, K), or for option A (N, H, W, C)
    uint16_t* y;
    MapTiles tiles;
    int height, width;  // P, Q
    int residual_height, residual_width, residual_channels, residual_stride;
    bool relu;
};

// Where the residual of an output pixel's chunk lies; -1 in the channels that option A pads with zeros.
template <Residual kResidual>
DEVICE int residual_offset(const BnAddAct& p, int pixel, const Place& place) {
    if constexpr (kResidual == Residual::kSame) return offset_of(p.tiles, pixel, place);
    int channel = place.channel - (p.tiles.channels - p.residual_channels) / 2;
    if (channel < 0 || channel >= p.residual_channels) return -1;
    int column = pixel % p.width, line = pixel / p.width;
    int image = line / p.height, row = line % p.height * p.residual_stride;
    int source = (image * p.residual_height + row) * p.residual_width + column * p.residual_stride;
    return source * p.residual_channels + channel;
}

template <ElementType kType, Residual kResidual>
__global__ void __launch_bounds__(kThreads) bn_add_act(const __grid_constant__ BnAddAct p) {
    Place place = place_of(p.tiles);
    if (!place.inside) return;
    Floats8 scale = load_floats8(p.scale + place.channel), shift = load_floats8(p.shift + place.channel);

    // load
    Chunk z[kAddBatch] = {}, residual[kAddBatch] = {};
#pragma unroll
    for (int i = 0; i < kAddBatch; ++i) {
        int pixel = place.first + i * p.tiles.rows();
        if (pixel >= place.end) continue;
        z[i] = load_global(p.z + offset_of(p.tiles, pixel, place));
        if constexpr (kResidual != Residual::kNone) {
            int offset = residual_offset<kResidual>(p, pixel, place);
            if (offset >= 0) residual[i] = load_global(p.residual + offset);
        }
    }

    // compute and store
#pragma unroll
    for (int i = 0; i < kAddBatch; ++i) {
        int pixel = place.first + i * p.tiles.rows();
        if (pixel >= place.end) continue;
        Floats8 y = widen<kType>(z[i]), added = widen<kType>(residual[i]);
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) {
            float value = fmaf(y.value[c], scale.value[c], shift.value[c]);
            if constexpr (kResidual != Residual::kNone) value += added.value[c];
            y.value[c] = p.relu ? relu(value) : value;
        }
        store_global(p.y + offset_of(p.tiles, pixel, place), narrow<kType>(y));
    }
}

// ---- backward ----

constexpr int kBackwardBatch = 2;

struct BnActBackward {
    const uint16_t* grad;
    const uint16_t* out;  // of the ReLU; null for an identity
    const uint16_t* z;
    const float* mean;
    uint16_t* g;
    float* partials;  // (tiles, 2, K): a tile's sums of g and of g * (z - mean)
    MapTiles tiles;
};

// The bits of grad where out > 0 or is NaN, zero elsewhere: what grad holds there, NaN too, is dropped.
template <ElementType kType>
DEVICE Chunk masked(const Chunk& grad, const Chunk& out) {
    Floats8 activated = widen<kType>(out);
    Chunk result;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        uint32_t low = activated.value[2 * i] <= 0.0f ? 0u : 0x0000FFFFu;
        uint32_t high = activated.value[2 * i + 1] <= 0.0f ? 0u : 0xFFFF0000u;
        result.word[i] = grad.word[i] & (low | high);
    }
    return result;
}

template <ElementType kType, bool kMasked>
__global__ void __launch_bounds__(kThreads) bn_act_backward(const __grid_constant__ BnActBackward p) {
    Place place = place_of(p.tiles);
    Floats8 mean = {};
    if (place.inside) mean = load_floats8(p.mean + place.channel);
    GradientSums sums;
    int rows = p.tiles.rows();
    for (int first = place.first; first < place.end; first += kBackwardBatch * rows) {
        // load
        Chunk grad[kBackwardBatch], z[kBackwardBatch], out[kBackwardBatch];
#pragma unroll
        for (int i = 0; i < kBackwardBatch; ++i) {
            int pixel = first + i * rows;
            if (pixel >= place.end) continue;
            int offset = offset_of(p.tiles, pixel, place);
            grad[i] = load_global(p.grad + offset);
            z[i] = load_global(p.z + offset);
            if constexpr (kMasked) out[i] = load_global(p.out + offset);
        }
        // compute and store
#pragma unroll
        for (int i = 0; i < kBackwardBatch; ++i) {
            int pixel = first + i * rows;
            if (pixel >= place.end) continue;
            Chunk g = grad[i];
            if constexpr (kMasked) g = masked<kType>(g, out[i]);
            store_global(p.g + offset_of(p.tiles, pixel, place), g);
            sums.add(widen<kType>(g), widen<kType>(z[i]), mean);
        }
    }
    // finish
    sums.store(p.partials, p.tiles, place);
}

// ---- the norm's backward itself ----

struct BnBackwardApply {
    const uint16_t* g;
    const uint16_t* z;  // null, as b and c, where the statistics are constants
    const float* a;
    const float* b;
    const float* c;
    uint16_t* dz;
    MapTiles tiles;
};

// dz = a * g + b * z + c, or a * g.
template <ElementType kType, bool kConstant>
__global__ void __launch_bounds__(kThreads) bn_backward_apply(const __grid_constant__ BnBackwardApply p) {
    Place place = place_of(p.tiles);
    if (!place.inside) return;
    Floats8 a = load_floats8(p.a + place.channel), b = {}, c = {};
    if constexpr (!kConstant) b = load_floats8(p.b + place.channel), c = load_floats8(p.c + place.channel);

    // load
    Chunk g[kAddBatch] = {}, z[kAddBatch] = {};
#pragma unroll
    for (int i = 0; i < kAddBatch; ++i) {
        int pixel = place.first + i * p.tiles.rows();
        if (pixel >= place.end) continue;
        g[i] = load_global(p.g + offset_of(p.tiles, pixel, place));
        if constexpr (!kConstant) z[i] = load_global(p.z + offset_of(p.tiles, pixel, place));
    }

    // compute and store
#pragma unroll
    for (int i = 0; i < kAddBatch; ++i) {
        int pixel = place.first + i * p.tiles.rows();
        if (pixel >= place.end) continue;
        Floats8 dz = widen<kType>(g[i]), wide = widen<kType>(z[i]);
#pragma unroll
        for (int k = 0; k < kChunkChannels; ++k) {
            dz.value[k] *= a.value[k];
            if constexpr (!kConstant) dz.value[k] = fmaf(wide.value[k], b.value[k], dz.value[k]) + c.value[k];
        }
        store_global(p.dz + offset_of(p.tiles, pixel, place), narrow<kType>(dz));
    }
}

}  // namespace kernels
