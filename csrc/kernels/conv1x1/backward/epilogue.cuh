// conv1x1_backward, consumers: dx of a tile on its way out, and dW in the end.
#pragma once
#include "kernels/conv1x1/backward/plan.cuh"

namespace conv1x1_backward {

struct MapWords {  // 16 pixels x 16 channels of each map; zeros of those that are not there
    uint32_t x[4] = {}, skip[4] = {}, skip_out[4] = {};
};

// Two channels of one pixel, as they will be stored; NaN in a map that masks lets pass.
template <ElementType kType>
DEVICE uint32_t finish_pair(const float* d, const MapWords& words, int i, const BackwardArguments& arguments) {
    Floats2 x = unpack<kType>(words.x[i]), skip = unpack<kType>(words.skip[i]),
            skip_out = unpack<kType>(words.skip_out[i]);
    float dx[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        bool skips = !arguments.has_skip_out || !(skip_out.value[j] <= 0.0f);
        dx[j] = d[j] + (skips ? skip.value[j] : 0.0f);
        if (arguments.rectified && x.value[j] <= 0.0f) dx[j] = 0.0f;
    }
    return pack<kType>(dx[0], dx[1]);
}

// dx of 64 channels and the consumer's pixels, to where their x was.
template <class V>
DEVICE void finish_slice(const float (&d)[kAccumulators], const BackwardArguments& arguments, int stage,
                         const Consumer& consumer) {
    int pixel = consumer.index * kConsumerPixels + consumer.warp * 16;
#pragma unroll
    for (int channel = 0; channel < kSliceChannels; channel += 16) {
        int chunk = channel / kChunkChannels;
        MapWords words;
        load_matrix_x4(matrix_row(V::x(stage), pixel, chunk), words.x);
        if (arguments.has_skip) load_matrix_x4(matrix_row(V::skip(stage), pixel, chunk), words.skip);
        if (arguments.has_skip_out) load_matrix_x4(matrix_row(V::skip_out(stage), pixel, chunk), words.skip_out);
        uint32_t dx[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) dx[i] = finish_pair<V::kType>(&d[channel / 2 + 2 * i], words, i, arguments);
        store_matrix_x4(matrix_row(V::x(stage), pixel, chunk), dx[0], dx[1], dx[2], dx[3]);
    }
}

// ---- the end ----

struct Products {
    float of_slice[kMaxSlices][kAccumulators];  // all filters by 64 channels
};

template <class V>
DEVICE void put_products(const Products& dw, int thread) {
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice)
#pragma unroll
        for (int four = 0; four < kAccumulators / 4; ++four) {
            const float* v = &dw.of_slice[slice][4 * four];
            store_shared(V::products(slice, four, thread), Floats4{{v[0], v[1], v[2], v[3]}});
        }
}

template <class V>
DEVICE void add_products(Products& dw, int thread) {
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice)
#pragma unroll
        for (int four = 0; four < kAccumulators / 4; ++four) {
            Floats4 more = load_shared<Floats4>(V::products(slice, four, thread));
#pragma unroll
            for (int i = 0; i < 4; ++i) dw.of_slice[slice][4 * four + i] += more.value[i];
        }
}

DEVICE void write_products(const Products& dw, const BackwardArguments& arguments, const Consumer& consumer) {
    float* row = arguments.partials + int64_t{block_index()} * arguments.filters * arguments.channels;
#pragma unroll
    for (int slice = 0; slice < kMaxSlices; ++slice)
#pragma unroll
        for (int i = 0; i < kAccumulators; i += 2) {
            int filter = consumer.warp * 16 + i / 2 % 2 * 8 + lane_index() / 4;
            int channel = slice * kSliceChannels + i / 4 * 8 + consumer.column();
            if (filter >= arguments.filters || channel >= arguments.channels) continue;
            const float* v = &dw.of_slice[slice][i];
            store_to(row + filter * arguments.channels + channel, Floats2{{v[0], v[1]}});
        }
}

// Both consumers' products, added up, to the block's row of partials.
template <class V>
DEVICE void finish_products(Products& dw, const BackwardArguments& arguments, const Consumer& consumer) {
    auto sync = [] { named_barrier_sync(kAllConsumersBarrier, kConsumerThreads); };
    sync();  // nothing is multiplied or loaded any more
    if (consumer.index == 1) put_products<V>(dw, consumer.thread);
    sync();
    if (consumer.index == 1) return;
    add_products<V>(dw, consumer.thread);
    write_products(dw, arguments, consumer);
}

}  // namespace conv1x1_backward
