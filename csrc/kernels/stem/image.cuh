// The stem's images: what of them, dense (n, h, w, 3), a tile of outputs reads, and how it lies in shared memory.
//
// A tile is 8 rows x 16 columns of outputs of a 7x7 convolution with stride 2 and padding 3, and its halo 21 x 38
// pixels. A pixel is three elements, 6 bytes: nothing that TMA could address or ldmatrix could read. In shared memory
// it has a fourth, zero, which makes the im2col matrix a view of the halo: for each row of the filter, the 8 pixels
// from 2 * q - 3 on are 64 contiguous bytes, those of the next output begin 16 bytes further, and a row of ldmatrix is
// two taps of an output. The eighth pixel belongs to no tap; whoever reads it drops it.
#pragma once
#include "device/image.cuh"
#include "kernels/parts/pixel_tiles.cuh"

namespace stem {

using namespace pixels;

constexpr int kFilterSize = 7, kStride = 2, kPadding = 3;
constexpr int kTaps = 8;  // of a row of the filter, one of them in excess
constexpr int kChannels = 3, kPaddedChannels = 4;
constexpr int kFilters = kSliceChannels;

constexpr int kColumnLog2 = 4, kRowLog2 = kTileLog2 - kColumnLog2;
constexpr int kTileColumns = 1 << kColumnLog2, kTileRows = 1 << kRowLog2;
constexpr int kHaloRows = kStride * (kTileRows - 1) + kFilterSize;
constexpr int kHaloColumns = kStride * (kTileColumns - 1) + kTaps;
constexpr int kHaloPixels = kHaloRows * kHaloColumns;

constexpr int kImagePixelBytes = 2 * kPaddedChannels;
constexpr int kHaloRowBytes = kHaloColumns * kImagePixelBytes;
constexpr int kHaloBytes = (kHaloRows * kHaloRowBytes + 127) / 128 * 128;
static_assert(kHaloRowBytes % 16 == 0 && kStride * kImagePixelBytes == 16);

struct Images {
    const uint16_t* data;  // (n, h, w, 3)
    int height, width;
};

HOST_DEVICE inline Tiles stem_tiles(int images, int rows, int columns) {
    return {images, rows, columns, kRowLog2, kColumnLog2};
}

// ---- through the registers of a warpgroup ----

constexpr int kLoaders = 128;
constexpr int kPixelsOfThread = (kHaloPixels + kLoaders - 1) / kLoaders;

struct HaloPart {  // of one thread: every kLoaders-th pixel
    uint16_t element[kPixelsOfThread][kChannels];
};

// Pixels outside of the image become zero.
DEVICE HaloPart load_halo(const Images& images, const Box& box, int thread) {
    HaloPart part = {};
    int first_row = box.row * kStride - kPadding, first_column = box.column * kStride - kPadding;
#pragma unroll
    for (int i = 0; i < kPixelsOfThread; ++i) {
        int pixel = thread + i * kLoaders, row = first_row + pixel / kHaloColumns;
        int column = first_column + pixel % kHaloColumns;
        bool exists = pixel < kHaloPixels && row >= 0 && row < images.height && column >= 0 && column < images.width;
        if (!exists) continue;
        int64_t at = (int64_t{box.image} * images.height + row) * images.width + column;
#pragma unroll
        for (int channel = 0; channel < kChannels; ++channel)
            part.element[i][channel] = load_element(images.data + at * kChannels + channel);
    }
    return part;
}

struct alignas(8) PaddedPixel {
    uint32_t word[2];
};

DEVICE PaddedPixel padded(const uint16_t (&element)[kChannels]) {
    return {{element[0] | uint32_t{element[1]} << 16, element[2]}};
}

DEVICE void store_halo(SmemAddress halo, const HaloPart& part, int thread) {
#pragma unroll
    for (int i = 0; i < kPixelsOfThread; ++i) {
        int pixel = thread + i * kLoaders;
        if (pixel < kHaloPixels) store_shared(halo + pixel * kImagePixelBytes, padded(part.element[i]));
    }
}

// Calls take(tile, n, part) for the n-th of a block's tiles; the elements of the next one are then on their way.
template <class Take>
DEVICE void for_each_halo(const Images& images, const Tiles& tiles, int thread, Take take) {
    HaloPart next = {};
    if (block_index() < tiles.count()) next = load_halo(images, tiles.first(block_index()), thread);
    int n = 0;
#pragma unroll 1
    for (int tile = block_index(); tile < tiles.count(); tile += block_count(), ++n) {
        HaloPart part = next;
        if (tile + block_count() < tiles.count()) next = load_halo(images, tiles.first(tile + block_count()), thread);
        take(tile, n, part);
    }
}

// ---- as the im2col matrix ----

// The 16 bytes of taps 2 * pair and 2 * pair + 1 of a row of the filter that an output of the tile reads.
DEVICE SmemAddress tap_pair(SmemAddress halo, int row, int column, int filter_row, int pair) {
    return halo + (row * kStride + filter_row) * kHaloRowBytes + (column + pair) * 16;
}

}  // namespace stem
