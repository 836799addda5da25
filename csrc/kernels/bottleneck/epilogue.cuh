// bottleneck_inference, consumers: what happens to 64 filters of a part of the pixels between the accumulators and
// shared memory, and how the output leaves it.
#pragma once
#include "kernels/bottleneck/multiply.cuh"

namespace bottleneck_inference {

struct ScaleShift {
    float scale[2], shift[2];  // of the thread's two filters
};

template <class P>
DEVICE ScaleShift load_norm(const Norm& norm, const Consumer<P>& consumer, int first_filter) {
    ScaleShift result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        result.scale[half] = norm.scale[first_filter + consumer.filter(half)];
        result.shift[half] = norm.shift[first_filter + consumer.filter(half)];
    }
    return result;
}

DEVICE float normalized(float value, const ScaleShift& norm, int half) {
    return fmaf(value, norm.scale[half], norm.shift[half]);
}

template <ElementType kType>
DEVICE uint32_t activated(const float* pair, const ScaleShift& norm, int half) {
    return pack_relu<kType>(normalized(pair[0], norm, half), normalized(pair[1], norm, half));
}

// 64 filters of kGroups groups of 8 pixels into a slice in shared memory, transposed on the way to pixels of 64
// channels. finish(group, word, word) makes the words of the thread's two filters, in place of what the slice holds
// there if kInPlace.
template <int kGroups, bool kInPlace, class Finish>
DEVICE void store_groups(SmemAddress first, uint32_t group_bytes, int thread, const Finish& finish) {
    thread = forgotten(thread);
    int matrix = thread % 32 / 8;
    SmemAddress lane = first + matrix / 2 * group_bytes + thread % 8 * kPixelBytes +
                       (thread / 32 * 2 + matrix % 2) * static_cast<int>(sizeof(Chunk));
    static_assert(!kInPlace || kGroups % 2 == 0);
#pragma unroll
    for (int group = 0; group < kGroups; group += 2) {
        SmemAddress row = swizzled(Swizzle::k128B, lane + group * group_bytes);
        uint32_t r[4] = {};
        if constexpr (kInPlace) load_matrix_x4_trans(row, r);
        finish(group, r[0], r[1]);
        if (group + 1 < kGroups) {
            finish(group + 1, r[2], r[3]);
            store_matrix_x4_trans(row, r[0], r[1], r[2], r[3]);
        } else {
            store_matrix_x2_trans(row, r[0], r[1]);
        }
    }
}

// ---- y1 and y2 ----

// Which pixels of a halo lie in the image; the others are the 3x3 convolution's padding.
template <class P>
struct Inside {
    uint32_t rows;  // bit r: row r
    int first_column, width;

    DEVICE Inside(const Problem& problem, const Tile& tile)
        : first_column(P::kStride * tile.column - 1), width(problem.width) {
        MapRow at = halo_row<P>(problem, tile, lane_index());
        rows = warp_ballot(lane_index() < P::kHaloRows && at.row >= 0 && at.row < problem.height &&
                           at.image < problem.images);
    }
    DEVICE bool has_row(int pixel) const { return rows >> pixel / P::kRowPixels & 1; }
    DEVICE bool has_column(int pixel) const {
        int place = pixel % P::kRowPixels;
        bool is_even = P::kStride == 2 && place >= P::kOddPixels;
        int column = first_column + (is_even ? P::kStride * (place - P::kOddPixels) + 1 : P::kStride * place);
        return static_cast<uint32_t>(column) < static_cast<uint32_t>(width);
    }
    // The bits of a word with two pixels that are to stay.
    DEVICE uint32_t mask(int pixel) const {
        bool low = has_row(pixel) & has_column(pixel);
        bool high = has_row(P::kRowPixels % 2 ? pixel + 1 : pixel) & has_column(pixel + 1);
        return (low ? 0x0000FFFFu : 0u) | (high ? 0xFFFF0000u : 0u);
    }
};

// y1 = relu(d * scale + shift), rounded, and zero where there is no image.
template <class P, ElementType kType>
DEVICE void store_y1(const float (&d)[P::kHaloPart / 2], const ScaleShift& norm, const Consumer<P>& consumer,
                     const Inside<P>& inside) {
    int first = consumer.pixel_part * P::kHaloPart, pair = forgotten(first + lane_index() % 4 * 2);
    SmemAddress to = P::y1(consumer.filter_part) + first * kPixelBytes;
    store_groups<P::kHaloPart / kGroup, false>(to, kAtomBytes, consumer.thread,
                                               [&](int group, uint32_t& low, uint32_t& high) {
                                                   uint32_t mask = inside.mask(pair + group * kGroup);
                                                   low = activated<kType>(&d[4 * group], norm, 0) & mask;
                                                   high = activated<kType>(&d[4 * group + 2], norm, 1) & mask;
                                               });
}

template <class P, ElementType kType>
DEVICE void store_y2(const float (&d)[P::kTilePart / 2], const ScaleShift& norm, const Consumer<P>& consumer) {
    SmemAddress to = P::y2(consumer.filter_part) + consumer.pixel_part * P::kTilePart * kPixelBytes;
    store_groups<P::kTilePart / kGroup, false>(to, kAtomBytes, consumer.thread,
                                               [&](int group, uint32_t& low, uint32_t& high) {
                                                   low = activated<kType>(&d[4 * group], norm, 0);
                                                   high = activated<kType>(&d[4 * group + 2], norm, 1);
                                               });
}

// ---- output ----

// relu(d * scale + shift + residual), in the place of the residual.
template <ElementType kType>
DEVICE void add_residual(uint32_t& word, const float* pair, const ScaleShift& norm, int half) {
    Floats2 residual = unpack<kType>(word);
    word = pack_relu<kType>(normalized(pair[0], norm, half) + residual.value[0],
                            normalized(pair[1], norm, half) + residual.value[1]);
}

// One thread: a consumer's rows of 64 output channels, which begin at `source` and lie row_pixels apart, to memory.
template <class P>
DEVICE void store_rows(const Parameters& parameters, const Consumer<P>& consumer, const Tile& tile, int first_channel,
                       SmemAddress source, int row_pixels) {
    OutputRows rows(parameters.arguments.problem, tile.row + consumer.pixel_part * P::kPartRows);
#pragma unroll 1
    for (int row = 0; row < P::kPartRows; ++row) {
        MapRow to = rows.next();
        tma_store_output_4d(parameters.output, source + row * row_pixels * kPixelBytes, first_channel, tile.column,
                            to.row, to.image);
    }
    tma_store_commit();
}

// The input's slice is the residual, and the output takes its place.
template <class P, ElementType kType>
DEVICE void store_identity(const float (&d)[P::kTilePart / 2], const ScaleShift& norm, const Parameters& parameters,
                           const Consumer<P>& consumer, const Tile& tile, int first_channel, int slot) {
    int first_row = consumer.pixel_part * P::kPartRows;
    SmemAddress pixels = P::input(slot) + (P::tap_pixels(kCenterTap) + first_row * P::kRowPixels) * kPixelBytes;
    store_groups<P::kTilePart / kGroup, true>(pixels, P::kGroupBytes, consumer.thread,
                                              [&](int group, uint32_t& low, uint32_t& high) {
                                                  add_residual<kType>(low, &d[4 * group], norm, 0);
                                                  add_residual<kType>(high, &d[4 * group + 2], norm, 1);
                                              });
    fence_proxy_async();
    consumer.sync();
    if (consumer.thread == 0) store_rows<P>(parameters, consumer, tile, first_channel, pixels, P::kRowPixels);
}

// The output goes through the consumer's own staging buffer.
template <class P, ElementType kType>
DEVICE void store_projected(const float (&d)[P::kTilePart / 2], const ScaleShift& norm,
                            const float (&shortcut)[P::kTilePart / 2], const ScaleShift& shortcut_norm,
                            const Parameters& parameters, const Consumer<P>& consumer, const Tile& tile,
                            int first_channel) {
    SmemAddress pixels = P::staged(consumer.index);
    if (consumer.thread == 0) tma_store_wait_read();
    consumer.sync();
    auto word = [&](int i, int half) {
        return pack_relu<kType>(normalized(d[i], norm, half) + normalized(shortcut[i], shortcut_norm, half),
                                normalized(d[i + 1], norm, half) + normalized(shortcut[i + 1], shortcut_norm, half));
    };
    store_groups<P::kTilePart / kGroup, false>(pixels, kAtomBytes, consumer.thread,
                                               [&](int group, uint32_t& low, uint32_t& high) {
                                                   low = word(4 * group, 0);
                                                   high = word(4 * group + 2, 1);
                                               });
    fence_proxy_async();
    consumer.sync();
    if (consumer.thread == 0) store_rows<P>(parameters, consumer, tile, first_channel, pixels, P::kTileRowPixels);
}

}  // namespace bottleneck_inference
