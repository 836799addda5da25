// The launchers of conv3x3_halo: a 3x3 convolution with padding 1 of c channels to k, on a GPU of compute capability
// 9.0: 64, 128, 256 or 512 to as many with stride 1 or 2, 64, 128 or 256 to twice as many with stride 2. Conventions:
// launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// y = act(conv(a, weight) * scale + shift + residual), a = relu(x * in_scale + in_shift) rounded to x's type, or x.
//
//   x         (n, h, w, c); y, residual (n, p, q, k) with p = ceil(h / stride), q = ceil(w / stride)
//   weight    (k, 3, 3, c): filter, row, column, input channel; what a channels_last weight is
//   in_scale, in_shift (c), scale, shift (k) float32; each pair may be 0, and residual
//   packed_limit  how large |in_shift / in_scale| may be, in units of x, for a group of eight channels to be normalised
//             in packed 16-bit arithmetic; 0: everything in float32. Packed arithmetic rounds in_scale and in_shift to
//             x's type: choose a limit of some of x's deviations, or 0 if these are not known.
void conv3x3_halo_act(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, double packed_limit, Pointer scale,
                      Pointer shift, Pointer residual, Pointer y, int element_type, int64_t n, int64_t h, int64_t w,
                      int64_t c, int64_t k, int64_t stride, bool relu, bool weights_ready, Pointer stream);

// z = conv(a, weight), and partials (partial_rows, 3, k) float32: count, mean and M2, the sum of squared deviations
// from that mean, of z as rounded, each row over some of the pixels; rows that are not needed are zeros. One row a
// block: at least 1, and as many as the GPU has multiprocessors are enough; fewer slow the kernel down.
void conv3x3_halo_stats(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, double packed_limit, Pointer z,
                        Pointer partials, int64_t partial_rows, int element_type, int64_t n, int64_t h, int64_t w,
                        int64_t c, int64_t k, int64_t stride, Pointer stream);

}  // namespace launch
