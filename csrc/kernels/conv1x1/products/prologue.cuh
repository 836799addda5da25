// conv1x1_products, in shared memory: z becomes a, grad becomes g.
#pragma once
#include "kernels/conv1x1/products/plan.cuh"

namespace conv1x1_products {

struct Norm {  // of eight channels
    Floats8 scale, shift, center;
};

template <ElementType kType>
DEVICE Chunk centered(const Chunk& z, const Norm& norm, bool has_prologue) {
    Floats8 a = widen<kType>(z);
    if (has_prologue) a = widen<kType>(narrow<kType>(scale_shift_relu(a, norm.scale, norm.shift)));
#pragma unroll
    for (int i = 0; i < kChunkChannels; ++i) a.value[i] -= norm.center.value[i];
    return narrow<kType>(a);
}

template <class V>
DEVICE void make_activations(SmemAddress slot, const Arguments& arguments, const Box& box, int first_channel,
                             int thread) {
    constexpr int kColumns = V::kChannels / kChunkChannels, kRows = kConsumerThreads / kColumns;
    int column = thread % kColumns, channel = first_channel + column * kChunkChannels;
    bool exists = channel < arguments.problem.channels, has_prologue = arguments.in_scale != nullptr;
    Norm norm = {};
    if (exists) norm.center = load_floats8(arguments.center + channel);
    if (exists && has_prologue) {
        norm.scale = load_floats8(arguments.in_scale + channel);
        norm.shift = load_floats8(arguments.in_shift + channel);
    }
#pragma unroll
    for (int i = 0; i < kTilePixels / kRows; ++i) {
        int pixel = thread / kColumns + i * kRows;
        SmemAddress at = chunk_address(slot + column / 8 * kSliceBytes, pixel, column % 8);
        Chunk a = {};
        if (arguments.problem.tiles.inside(box, pixel))
            a = centered<V::kType>(load_shared<Chunk>(at), norm, has_prologue);
        store_shared(at, a);
    }
}

// NaN in out lets grad pass.
template <ElementType kType>
DEVICE Chunk masked(const Chunk& grad, const Chunk& out) {
    Chunk g;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        Floats2 values = unpack<kType>(out.word[i]);
        uint32_t low = values.value[0] <= 0.0f ? 0 : 0xFFFF, high = values.value[1] <= 0.0f ? 0 : 0xFFFF0000;
        g.word[i] = grad.word[i] & (low | high);
    }
    return g;
}

DEVICE float sum_of_warp(float value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// Masks one slice; a warp has eight of its filters, and adds their sums to those of the tiles before.
template <class V>
DEVICE void make_gradient(int stage, int first_filter, bool has_out, int thread) {
    int chunk = thread / 32;
    Floats8 sum = {};
#pragma unroll
    for (int pixel = lane_index(); pixel < kTilePixels; pixel += 32) {
        SmemAddress at = chunk_address(V::gradient(stage), pixel, chunk);
        Chunk g = load_shared<Chunk>(at);
        if (has_out) {
            g = masked<V::kType>(g, load_shared<Chunk>(chunk_address(V::output(stage), pixel, chunk)));
            store_shared(at, g);
        }
        Floats8 wide = widen<V::kType>(g);
#pragma unroll
        for (int i = 0; i < kChunkChannels; ++i) sum.value[i] += wide.value[i];
    }
#pragma unroll
    for (int i = 0; i < kChunkChannels; ++i) {
        float total = sum_of_warp(sum.value[i]);
        SmemAddress at = V::sum(first_filter + chunk * kChunkChannels + i);
        if (lane_index() == i) store_shared(at, load_shared<float>(at) + total);
    }
}

}  // namespace conv1x1_products
