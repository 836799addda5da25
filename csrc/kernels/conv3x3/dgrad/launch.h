// The launcher of conv3x3_halo_dgrad: the input gradient of a 3x3 convolution with padding 1 of c channels to k, on a
// GPU of compute capability 9.0: the channels and strides of kernels/conv3x3/forward/launch.h. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// dz = a * g + b * z + c, rounded to g's type; dx = conv_transpose(dz, weight) + skip, zero where below_z * below_scale
// + below_shift <= 0 or where below_out <= 0, rounded; skip is taken for zero where skip_out <= 0. All of it in
// float32; a NaN in below_z or below_out lets dx pass, one in skip_out the skip.
//
//   g, z      (n, p, q, k) with p = ceil(h / stride), q = ceil(w / stride)
//   a, b, c_  (k) float32; z, b and c_ are 0 where the statistics are constants
//   weight    (c, 3, 3, k), of g's type: input channel, row, column, filter, the filters turned around: of a
//             convolution's (filter, input channel, row, column) it is flip(2, 3).permute(1, 2, 3, 0), made contiguous
//   below_z, below_out, dx   (n, h, w, c); each but dx may be 0
//   skip, skip_out   (n, ceil(h / stride), ceil(w / stride), c), of the pixels (stride * i, stride * j) of dx, or 0;
//             skip_out with skip alone. A skip and below_out: at stride 1, or where k is twice c
//   below_scale, below_shift   (c) float32, with below_z and without below_out; or both 0
//   below_mean    (c) float32, and partials: with below_z, and 0 without it
//   partials  (partial_rows, 2, c) float32: sums of dx as rounded, and of dx * (below_z - below_mean), each row over
//             some of the pixels; rows that are not needed are zeros. One row a block: at least 1, and as many as the
//             GPU has multiprocessors are enough; fewer slow the kernel down.
void conv3x3_halo_dgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer below_z,
                        Pointer below_scale, Pointer below_shift, Pointer below_mean, Pointer below_out, Pointer skip,
                        Pointer skip_out, Pointer dx, Pointer partials, int64_t partial_rows, int element_type,
                        int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream);

}  // namespace launch
