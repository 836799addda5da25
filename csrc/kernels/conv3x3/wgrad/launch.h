// The launcher of conv3x3_halo_wgrad: the weight gradient of a 3x3 convolution with padding 1, c -> k channels, both
// multiples of 64, stride 1 or 2, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// dz = a * g + b * z + c, rounded to g's type; x' = relu(x * in_scale + in_shift), rounded to x's type, or x. The sum
// over the splits of partials is dW, the correlation of dz and x'.
//
//   g, z      (n, p, q, k) with p = ceil(h / stride), q = ceil(w / stride)
//   a, b, c_  (k) float32; z, b and c_ are 0 where the statistics are constants
//   x         (n, h, w, c)
//   in_scale, in_shift   (c) float32, or both 0
//   packed_limit         as conv3x3_halo_act's
//   partials  (splits, k, 3, 3, c) float32: filter, row, column, input channel; every element is written. `splits` is
//             at least 1; more of them than conv3x3_halo_wgrad_splits says only write more.
//
// A NaN or an infinity in x may make a NaN of more taps of its channel than the definition does: at the edge of the map
// it meets a dz that does not exist, a zero. The taps that the definition makes NaN always are.
void conv3x3_halo_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer x, Pointer in_scale,
                        Pointer in_shift, double packed_limit, Pointer partials, int64_t splits, int element_type,
                        int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream);

// How many splits give every multiprocessor of the current GPU a block.
int64_t conv3x3_halo_wgrad_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride);

}  // namespace launch
