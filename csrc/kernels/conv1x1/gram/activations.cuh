// conv1x1_gram, consumers: the centre, and z turned into activations where it lies in shared memory.
#pragma once
#include "kernels/conv1x1/gram/plan.cuh"

namespace conv1x1_gram {

// A thread's chunk of channels of an operand, and its pixels.
template <class V>
struct Column {
    static constexpr int kPixels = kTilePixels / V::kRows;

    int chunk, first_pixel, channel;
    Floats8 center = {};

    DEVICE Column(int first_channel, int thread)
        : chunk(thread % V::kChunks),
          first_pixel(thread / V::kChunks),
          channel(first_channel + chunk * kChunkChannels) {}

    DEVICE int pixel(int i) const { return first_pixel + i * V::kRows; }
    DEVICE SmemAddress address(int use, int i) const {
        SmemAddress operand = V::operand(turn<V::kStages>(use).slot);
        return chunk_address(operand + chunk / 8 * kSliceBytes, pixel(i), chunk % 8);
    }

    // Of one of the chunk's pairs of channels. Loaded for every tile: two operands' would fill the registers.
    DEVICE Norm norm(const Arguments& arguments, int pair) const {
        Norm norm = activations::load_norm(arguments.prologue, channel + 2 * pair, arguments.problem.channels);
        norm.center = {{center.value[2 * pair], center.value[2 * pair + 1]}};
        return norm;
    }

    // The activations of an operand that holds z; zeros outside of the map.
    DEVICE void load(Chunk (&a)[kPixels], int use, const Arguments& arguments, const Box& box) const {
#pragma unroll
        for (int i = 0; i < kPixels; ++i) a[i] = load_shared<Chunk>(address(use, i));
#pragma unroll
        for (int pair = 0; pair < kChunkChannels / 2; ++pair) {
            Norm of_pair = norm(arguments, pair);
#pragma unroll
            for (int i = 0; i < kPixels; ++i) {
                uint32_t kept = arguments.problem.tiles.inside(box, pixel(i)) ? ~0u : 0;
                a[i].word[pair] = activations::centered<V::kType>(a[i].word[pair], of_pair) & kept;
            }
        }
    }
};

// z becomes a, and its sum is added.
template <class V>
DEVICE void make_activations(const Column<V>& column, const Arguments& arguments, const Box& box, int use,
                             Floats8& sum) {
    Chunk a[Column<V>::kPixels];
    column.load(a, use, arguments, box);
#pragma unroll
    for (int i = 0; i < Column<V>::kPixels; ++i) {
        store_shared(column.address(use, i), a[i]);
        add(sum, widen<V::kType>(a[i]));
    }
}

HOST_DEVICE inline int least(int a, int b) { return a < b ? a : b; }

// Of the first tile.
DEVICE float pixel_count(const Tiles& t) {
    return static_cast<float>(least(t.columns, 1 << t.column_log2) * least(t.rows, 1 << t.row_log2) *
                              least(t.images, 1 << t.image_log2()));
}

// Gives `column`, whose centre is still zero, that of its channels: the mean of the first tile where it is more than
// four deviations from zero. Mean first, then squared deviations from it.
template <class V>
DEVICE void find_center(Column<V>& column, const Arguments& arguments, int use, int thread) {
    const Tiles& tiles = arguments.problem.tiles;
    Chunk a[Column<V>::kPixels];
    Box box = tiles.first(0);
    column.load(a, use, arguments, box);
    Floats8 sum = {}, squares = {};
#pragma unroll
    for (int i = 0; i < Column<V>::kPixels; ++i) add(sum, widen<V::kType>(a[i]));
    Floats8 mean = V::sums().total(sum, thread);
    float count = pixel_count(tiles);
#pragma unroll
    for (int c = 0; c < kChunkChannels; ++c) mean.value[c] /= count;
#pragma unroll
    for (int i = 0; i < Column<V>::kPixels; ++i) {
        Floats8 wide = widen<V::kType>(a[i]);
        bool exists = tiles.inside(box, column.pixel(i));
#pragma unroll
        for (int c = 0; c < kChunkChannels; ++c) {
            float deviation = exists ? wide.value[c] - mean.value[c] : 0.0f;
            squares.value[c] = fmaf(deviation, deviation, squares.value[c]);
        }
    }
    squares = V::sums().total(squares, thread);
#pragma unroll
    for (int c = 0; c < kChunkChannels; ++c)  // a NaN is beyond nothing
        if (!(fabsf(mean.value[c]) > kCenteredBeyond * sqrtf(squares.value[c] / count))) mean.value[c] = 0.0f;
    column.center = widen<V::kType>(narrow<V::kType>(mean));
}

}  // namespace conv1x1_gram
