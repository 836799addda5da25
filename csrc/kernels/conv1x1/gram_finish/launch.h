// The launcher of conv1x1_gram_finish, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// g = t + a quadratic + constant where prologue(z) > 0, else 0; a = prologue(z) - center, rounded to z's type.
//
//   t, z, g    (n, h, w, c)
//   in_scale, in_shift (c) float32, or both 0: the norm prologue relu(z * in_scale + in_shift), rounded to z's type;
//              without it nothing is masked
//   center, constant, below_mean   (c) float32
//   quadratic  (2, c, c), of z's type: the matrix (channel of a, channel of g) rounded, and what is left of it
//   partials   (rows, 2, c) float32: sums of g as rounded, and of g * (z - below_mean), each row over some of the
//              pixels; at least 1 row and at most conv1x1_gram_finish_rows, which is best
//
// A NaN or an infinity in a may make a NaN of any channel of its pixel's g.
void conv1x1_gram_finish(Pointer t, Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer quadratic,
                         Pointer constant, Pointer below_mean, Pointer g, Pointer partials, int64_t rows,
                         int element_type, int64_t n, int64_t h, int64_t w, int64_t c, Pointer stream);

int64_t conv1x1_gram_finish_rows(int64_t n, int64_t h, int64_t w, int64_t c);

}  // namespace launch
