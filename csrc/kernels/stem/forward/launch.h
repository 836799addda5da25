// The launchers of the stem: a 7x7 convolution of stride 2 and padding 3 of images, 3 -> 64 channels, and its weight
// gradient, on a GPU of compute capability 9.0. Conventions: launch.h.
//
//   x        (n, h, w, 3), dense; unlike every other map it may begin at any address of an element
//   weight   (64, 7, 7, 3): what a (64, 3, 7, 7) weight is in channels_last
//   p, q     ceil(h / 2), ceil(w / 2)
#pragma once
#include "launch/launch.h"

namespace launch {

// y = act(conv(x, weight) * scale + shift + residual); scale, shift (64) float32; y, residual (n, p, q, 64), residual
// may be 0.
void stem_act(Pointer x, Pointer weight, Pointer scale, Pointer shift, Pointer residual, Pointer y, int element_type,
              int64_t n, int64_t h, int64_t w, bool relu, Pointer stream);

// z = conv(x, weight), and partials (stem_partial_rows, 3, 64) float32: count, mean and M2, the sum of squared
// deviations from that mean, of z as rounded, of each tile of at most 128 pixels.
void stem_stats(Pointer x, Pointer weight, Pointer z, Pointer partials, int element_type, int64_t n, int64_t h,
                int64_t w, Pointer stream);

// The tiles of 8 x 16 outputs, those at the edges counted in full.
int64_t stem_partial_rows(int64_t n, int64_t h, int64_t w);

}  // namespace launch
