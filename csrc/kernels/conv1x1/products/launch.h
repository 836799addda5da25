// The launcher of conv1x1_products, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// Both products of g = grad where not out <= 0, else 0, in one read of it:
//
//   grad, out  (n, p, q, k), k at most 2048, p = ceil(h / stride), q = ceil(w / stride); out may be 0: g = grad
//   z          (n, h, w, c), of which every stride-th pixel counts; in_scale, in_shift (c) float32 or both 0: the norm
//              prologue relu(z * in_scale + in_shift), rounded to z's type
//   center     (c) float32, subtracted from that, and rounded again: a
//   weight     (k, c)
//   t          (n, p, q, c) = g weight
//   products   (k * c + k) float32: M = g^T a, (k, c), then the sum of g over pixels, (k)
//   partials   (rows, k * c + k) float32, to work in: one row a block of the GPU, or a cluster of blocks beyond
//              256 filters, that takes part: at least 1 and at most the tiles; conv1x1_products_rows is best
void conv1x1_products(Pointer grad, Pointer out, Pointer z, Pointer in_scale, Pointer in_shift, Pointer center,
                      Pointer weight, Pointer t, Pointer products, Pointer partials, int64_t rows, int element_type,
                      int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream);

int64_t conv1x1_products_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride);

}  // namespace launch
