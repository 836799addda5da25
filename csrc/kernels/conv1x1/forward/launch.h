// The launchers of conv1x1: a 1x1 convolution of stride 1 or 2, c -> k channels, both multiples of 8, on a GPU of
// compute capability 9.0. Conventions: launch.h. `weight` is (k, c): what a (k, c, 1, 1) weight is, dense, in any
// memory format.
#pragma once
#include "launch/launch.h"

namespace launch {

// y = act(conv(a, weight) * scale + shift + residual), a = relu(x * in_scale + in_shift) rounded to x's type, or x.
//
//   x          (n, h, w, c); y, residual (n, p, q, k) with p = ceil(h / stride), q = ceil(w / stride)
//   scale, shift (k), in_scale, in_shift (c) float32; residual may be 0, and in_scale and in_shift together
//   splits     1, or how many blocks share each tile, see conv1x1_splits; without a prologue, and then with
//   products   (conv1x1_split_tiles, splits, 8192) float32, to work in; 0 where splits is 1
//   arrivals   (conv1x1_split_tiles) int32, zeros, and zeros again afterwards; 0 where splits is 1. Two launches that
//              may run at the same time must not share them.
void conv1x1_act(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, Pointer scale, Pointer shift,
                 Pointer residual, Pointer y, Pointer products, Pointer arrivals, int64_t splits, int element_type,
                 int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, bool relu, bool weights_ready,
                 Pointer stream);

// z = conv(a, weight), and partials (conv1x1_partial_rows, 3, k) float32: count, mean and M2, the sum of squared
// deviations from that mean, of z as rounded, of each tile of at most 128 pixels.
void conv1x1_stats(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, Pointer z, Pointer partials,
                   int element_type, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride,
                   Pointer stream);

// ceil(n * h * w / 128) at stride 1; at stride 2, where tiles are boxes of pixels, a few more than that of the output.
int64_t conv1x1_partial_rows(int64_t n, int64_t h, int64_t w, int64_t stride);

// Tiles of pixels and filters that blocks share where splits is not 1.
int64_t conv1x1_split_tiles(int64_t n, int64_t h, int64_t w, int64_t k, int64_t stride);

// How many blocks should share a tile so that all multiprocessors of the current GPU have one; 1 where they have
// anyway.
int64_t conv1x1_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride);

}  // namespace launch
