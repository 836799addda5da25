// The launcher of conv1x1_dgrad: the input gradient of a 1x1 convolution of stride 1 or 2, c -> k channels, both
// multiples of 8, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// dz = a * g + b * z + c, rounded to g's type; dx = dz weight at the pixels that the convolution read, else 0; every
// skip_stride-th pixel of it gets += skip where not skip_out <= 0; zero where below_z * below_scale + below_shift <= 0
// or where below_out <= 0; rounded. All of it in float32; a NaN in a map that masks lets pass.
//
//   g, z      (n, p, q, k) with p = ceil(h / stride), q = ceil(w / stride)
//   a, b, c_  (k) float32; z, b and c_ are 0 where the statistics are constants
//   weight    (k, c), of g's type: what a (k, c, 1, 1) weight is, dense, in any memory format
//   below_z, below_out, dx   (n, h, w, c); each but dx may be 0
//   below_scale, below_shift   (c) float32, with below_z and without below_out; or both 0
//   below_mean    (c) float32, and partials: with below_z, and 0 without it
//   skip, skip_out   (n, ceil(h / skip_stride), ceil(w / skip_stride), c), skip_stride 1 or 2; either may be 0, and
//             skip_out is where skip is
//   partials  (conv1x1_dgrad_partial_rows, 2, c) float32: sums of dx as rounded, and of dx * (below_z - below_mean),
//             each row over at most 128 pixels
void conv1x1_dgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer below_z,
                   Pointer below_scale, Pointer below_shift, Pointer below_mean, Pointer below_out, Pointer skip,
                   Pointer skip_out, int64_t skip_stride, Pointer dx, Pointer partials, int element_type, int64_t n,
                   int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream);

int64_t conv1x1_dgrad_partial_rows(int64_t n, int64_t h, int64_t w, int64_t stride, int64_t skip_stride);

}  // namespace launch
