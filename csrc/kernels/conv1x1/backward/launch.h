// The launcher of conv1x1_backward: both gradients of a 1x1 convolution of stride 1, c -> k channels, both multiples of
// 8, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// dz = a * g + b * z + c, rounded to g's type; dx = dz weight + skip where not skip_out <= 0, zero where x <= 0 if
// `rectified`, rounded; a NaN in a map that masks lets pass. The sum over the rows of partials is dW = dz^T x.
//
//   g, z      (n, h, w, k), k at most 64
//   a, b, c_  (k) float32; z, b and c_ are 0 where the statistics are constants
//   weight    (k, c), of g's type, c at most 256
//   x, dx     (n, h, w, c)
//   skip, skip_out   (n, h, w, c); either may be 0, and skip_out is where skip is
//   partials  (rows, k, c) float32; every element is written. `rows` is the number of blocks, at least 1 and at most as
//             many as there are tiles of pixels; conv1x1_backward_rows is best.
void conv1x1_backward(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer x, bool rectified,
                      Pointer skip, Pointer skip_out, Pointer dx, Pointer partials, int64_t rows, int element_type,
                      int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, Pointer stream);

// How many rows give every multiprocessor of the current GPU a block.
int64_t conv1x1_backward_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k);

}  // namespace launch
