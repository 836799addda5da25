// conv1x1, consumers: what happens to a tile between the accumulators and global memory.
#pragma once
#include "kernels/conv1x1/forward/statistics.cuh"
#include "kernels/parts/split_products.cuh"

namespace conv1x1 {

// ---- split channels ----

// The first accumulator of a tile: of its split 0, block 0 of 64 pixels. The blocks of a split follow one another.
template <class V>
DEVICE float* tile_products(const Arguments& arguments, const Work& work) {
    return arguments.products + static_cast<int64_t>(work.tile) * arguments.problem.splits * V::kSplitProducts;
}

// Whether any of the 64 pixels exists; the first of them does if one does.
DEVICE bool has_pixels(const Arguments& arguments, const Work& work, int block) {
    return arguments.problem.tiles.inside(work.pixels, block * 64);
}

template <class V>
DEVICE void store_split(const Accumulators<V>& d, const Arguments& arguments, const Work& work,
                        const Consumer& consumer) {
    float* to = tile_products<V>(arguments, work) + work.split * V::kSplitProducts;
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
        if (has_pixels(arguments, work, block))
            split_products::store(d.block[block], to + block * V::kBlockProducts, consumer.thread);
}

// Whether this split of the tile was the last one to arrive; d then is the sum over all of them.
template <class V>
DEVICE bool join_splits(Accumulators<V>& d, const Arguments& arguments, const Work& work, const Consumer& consumer) {
    int splits = arguments.problem.splits;
    store_split<V>(d, arguments, work, consumer);
    if (!split_products::arrives_last(&arguments.arrivals[work.tile], splits, V::flag(consumer.index), consumer))
        return false;
    const float* from = tile_products<V>(arguments, work);
    d = {};
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
        if (has_pixels(arguments, work, block))
            split_products::add(d.block[block], from + block * V::kBlockProducts, V::kSplitProducts, splits,
                                consumer.thread);
    return true;
}

// ---- output ----

// One thread: makes a consumer's output buffer ready. What it held has been stored, and the residual, if there is one,
// is on its way into it.
template <class V>
DEVICE void open_output(const Parameters& parameters, const Work& work, const Consumer& consumer) {
    tma_store_wait_read();
    if (!V::has_residual(parameters.arguments)) return;
    mbarrier_arrive_expect_tx(V::residual_full(consumer.index), V::kOutputBytes);
    for (int slice = 0; slice < V::kFilters / kSliceChannels; ++slice)
        tma_load_4d(V::output(consumer.index, slice), parameters.residual, V::residual_full(consumer.index),
                    work.first_filter + slice * kSliceChannels, work.pixels.column, work.pixels.row, work.pixels.image);
}

template <class V>
DEVICE void store_output(const Parameters& parameters, const Work& work, const Consumer& consumer) {
    fence_proxy_async();
    consumer.sync();
    if (consumer.thread > 0) return;
    for (int slice = 0; slice < V::kFilters / kSliceChannels; ++slice)
        tma_store_4d(parameters.output, V::output(consumer.index, slice), work.first_filter + slice * kSliceChannels,
                     work.pixels.column, work.pixels.row, work.pixels.image);
    tma_store_commit();
}

// 16 pixels x 16 filters of a warp in the output buffer.
template <class V>
DEVICE SmemAddress output_matrices(const Consumer& consumer, int block, int sixteen) {
    return matrix_row(V::output(consumer.index, sixteen / 4), block * 64 + consumer.warp * 16, sixteen % 4 * 2);
}

struct ScaleShift {
    Floats2 scale[2], shift[2];  // of the thread's filters in two neighbouring eights
};

DEVICE ScaleShift load_scale_shift(const Arguments& arguments, int first_filter, const Consumer& consumer) {
    ScaleShift norm = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (first_filter + 8 * half >= arguments.problem.filters) continue;
        int filter = first_filter + 8 * half + consumer.column();
        norm.scale[half] = load_pair(arguments.scale + filter);
        norm.shift[half] = load_pair(arguments.shift + filter);
    }
    return norm;
}

template <ElementType kType>
DEVICE uint32_t activated(const float* v, uint32_t residual, const Floats2& scale, const Floats2& shift, bool relu) {
    Floats2 add = unpack<kType>(residual);
    float low = fmaf(v[0], scale.value[0], shift.value[0]) + add.value[0];
    float high = fmaf(v[1], scale.value[1], shift.value[1]) + add.value[1];
    return relu ? pack_relu<kType>(low, high) : pack<kType>(low, high);
}

// act(d * scale + shift + residual), in the place of the residual.
template <class V>
DEVICE void stage_activated(const Accumulators<V>& d, const Arguments& arguments, const Work& work,
                            const Consumer& consumer) {
#pragma unroll
    for (int j = 0; j < V::kFilters / 16; ++j) {
        ScaleShift norm = load_scale_shift(arguments, work.first_filter + 16 * j, consumer);
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            SmemAddress matrices = output_matrices<V>(consumer, block, j);
            uint32_t r[4] = {};
            if (arguments.has_residual) load_matrix_x4(matrices, r);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                r[i] = activated<V::kType>(&d.block[block][8 * j + 2 * i], r[i], norm.scale[i / 2], norm.shift[i / 2],
                                           arguments.relu);
            store_matrix_x4(matrices, r[0], r[1], r[2], r[3]);
        }
    }
}

// d itself, rounded.
template <class V>
DEVICE Rounded<V> stage_rounded(const Accumulators<V>& d, const Consumer& consumer) {
    Rounded<V> z;
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block)
#pragma unroll
        for (int j = 0; j < V::kFilters / 16; ++j) {
            uint32_t* pair = &z.pair[block][4 * j];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                pair[i] = pack<V::kType>(d.block[block][8 * j + 2 * i], d.block[block][8 * j + 2 * i + 1]);
            store_matrix_x4(output_matrices<V>(consumer, block, j), pair[0], pair[1], pair[2], pair[3]);
        }
    return z;
}

// The buffer was opened. `use` counts the consumer's tiles.
template <class V>
DEVICE void finish(const Accumulators<V>& d, const Parameters& parameters, const Work& work, const Consumer& consumer,
                   int use) {
    const Arguments& arguments = parameters.arguments;
    if (V::has_residual(arguments))
        mbarrier_wait(V::residual_full(consumer.index), use % 2);
    else
        consumer.sync();
    if constexpr (V::kEpilogue == Epilogue::kScaleShiftAct) {
        stage_activated<V>(d, arguments, work, consumer);
        store_output<V>(parameters, work, consumer);
    } else {
        Rounded<V> z = stage_rounded<V>(d, consumer);
        store_output<V>(parameters, work, consumer);
        write_partials<V>(z, arguments, work, consumer);
    }
}

}  // namespace conv1x1
