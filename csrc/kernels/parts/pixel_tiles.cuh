// How the GEMMs over pixels cut a feature map into tiles of 128 pixels, and the tensor maps that bring and take them.
//
// A tile is a box of columns x rows x images, each a power of two, so that one TMA load fetches it and the place of its
// pixel i is a matter of shifts. Where the pixels lie densely one after the other (stride 1) the whole batch is one
// long row, cut every 128 pixels. A 1x1 convolution with a stride reads every stride-th pixel of every stride-th row,
// by TMA's own element strides: pixel 2 * i lies in a map of w columns exactly where i lies in one of ceil(w / 2), so
// odd sizes need nothing special. TMA fills what a box has outside of the map with zeros and does not store it.
#pragma once
#include "device/map_shape.h"
#include "device/primitives.cuh"

namespace pixels {

constexpr int kTilePixels = 128, kTileLog2 = 7;
constexpr int kSliceChannels = 64;               // of one load: 128 bytes a pixel, the width of the swizzle
constexpr int kPixelBytes = 2 * kSliceChannels;  // of one slice
constexpr int kSliceBytes = kTilePixels * kPixelBytes;
constexpr uint32_t kAtomBytes = 8 * kPixelBytes;       // eight rows of the swizzle
constexpr uint32_t kStepRowsBytes = 16 * kPixelBytes;  // the rows of one wgmma, where its k runs over rows
constexpr int kWarpgroup = 128, kWarps = kWarpgroup / 32;

struct Box {
    int image, row, column;
};

struct Tiles {
    int images, rows, columns;  // of the map
    int row_log2, column_log2;  // of a tile; the images take the rest of kTileLog2

    HOST_DEVICE int image_log2() const { return kTileLog2 - row_log2 - column_log2; }
    HOST_DEVICE int across() const { return (columns + (1 << column_log2) - 1) >> column_log2; }
    HOST_DEVICE int down() const { return (rows + (1 << row_log2) - 1) >> row_log2; }
    HOST_DEVICE int deep() const { return (images + (1 << image_log2()) - 1) >> image_log2(); }
    HOST_DEVICE int count() const { return across() * down() * deep(); }

    // The first pixel of tile `index`.
    HOST_DEVICE Box first(int index) const {
        int down_index = index / across();
        return {down_index / down() << image_log2(), down_index % down() << row_log2, index % across() << column_log2};
    }
    // Pixel i of the tile that begins at `box`.
    HOST_DEVICE Box pixel(const Box& box, int i) const {
        int column = i & ((1 << column_log2) - 1), row = i >> column_log2 & ((1 << row_log2) - 1);
        return {box.image + (i >> (row_log2 + column_log2)), box.row + row, box.column + column};
    }
    // Whether it is one of the map's.
    HOST_DEVICE bool inside(const Box& box, int i) const {
        Box at = pixel(box, i);
        return at.column < columns && at.row < rows && at.image < images;
    }
};

// Tiles over every `stride`-th pixel of maps whose strided extents are n, p, q: the fewest boxes, the widest of those.
HOST_DEVICE inline Tiles make_tiles(int n, int p, int q, int stride) {
    if (stride == 1) return {1, 1, n * p * q, 0, kTileLog2};
    Tiles best = {n, p, q, 0, kTileLog2};
    for (int column_log2 = kTileLog2; column_log2 >= 0; --column_log2)
        for (int row_log2 = kTileLog2 - column_log2; row_log2 >= 0; --row_log2) {
            Tiles tiles = {n, p, q, row_log2, column_log2};
            if (tiles.count() < best.count()) best = tiles;
        }
    return best;
}

// ---- tensor maps ----

// Every `stride`-th pixel of a dense map (n, h, w, channels), in boxes of `tiles`; the coordinates are the map's.
inline MapShape map_shape(const Tiles& tiles, int n, int h, int w, int channels, int stride) {
    if (stride == 1) w *= h * n, n = h = 1;
    return {{channels, w, h, n},
            {kSliceChannels, stride << tiles.column_log2, stride << tiles.row_log2, 1 << tiles.image_log2()},
            {1, stride, stride, 1},
            false};
}

// A dense map of the tiles' own extents, in boxes of tiles, or of runs of a tile's pixels.
inline MapShape map_shape(const Tiles& tiles, int channels, int pixels_log2 = kTileLog2) {
    int column_log2 = tiles.column_log2 < pixels_log2 ? tiles.column_log2 : pixels_log2,
        rest = pixels_log2 - column_log2;
    int row_log2 = tiles.row_log2 < rest ? tiles.row_log2 : rest;
    return {{channels, tiles.columns, tiles.rows, tiles.images},
            {kSliceChannels, 1 << column_log2, 1 << row_log2, 1 << (rest - row_log2)},
            {1, 1, 1, 1},
            false};
}

// A dense matrix (rows, columns), in boxes of 64 columns.
inline MapShape matrix_shape(int rows, int columns, int box_rows) {
    return {{columns, rows, 1, 1}, {kSliceChannels, box_rows, 1, 1}, {1, 1, 1, 1}, false};
}

// ---- a slice in shared memory ----

DEVICE SmemAddress chunk_address(SmemAddress slice, int pixel, int chunk) {
    return swizzled(Swizzle::k128B, slice + pixel * kPixelBytes + chunk * 16);
}

// For load_matrix_x4 and store_matrix_x4: this lane's row of the 16 pixels x 16 channels from (pixel, chunk) on, whose
// four 8x8 matrices then are the registers of operand A, and two by two those of two neighbouring eights of columns of
// an accumulator.
DEVICE SmemAddress matrix_row(SmemAddress slice, int pixel, int chunk) {
    return chunk_address(slice, pixel + lane_index() % 16, chunk + lane_index() / 16);
}

// The n-th use of a ring of `size` slots: which slot, and the parity of the phase of its barriers.
struct Turn {
    int slot;
    uint32_t parity;
};
template <int kSize>
DEVICE Turn turn(int use) {
    return {use % kSize, static_cast<uint32_t>(use / kSize % 2)};
}

}  // namespace pixels
