// The launcher of conv1x1_wgrad: the weight gradient of a 1x1 convolution of stride 1 or 2, c -> k channels, both
// multiples of 8, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// dz = a * g + b * z + c, rounded to g's type; x' = relu(x * in_scale + in_shift), rounded to x's type, or x. The sum
// over the splits of partials is dW = dz^T x', over the pixels that the convolution read.
//
//   g, z      (n, p, q, k) with p = ceil(h / stride), q = ceil(w / stride)
//   a, b, c_  (k) float32; z, b and c_ are 0 where the statistics are constants
//   x         (n, h, w, c)
//   in_scale, in_shift   (c) float32, or both 0
//   partials  (splits, k, c) float32; every element is written. `splits` is at least 1 and at most as many as there are
//             tiles of pixels; conv1x1_wgrad_splits is best.
void conv1x1_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer x, Pointer in_scale,
                   Pointer in_shift, Pointer partials, int64_t splits, int element_type, int64_t n, int64_t h,
                   int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream);

// How many splits give every multiprocessor of the current GPU a block.
int64_t conv1x1_wgrad_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride);

}  // namespace launch
