// The launcher of conv1x1_gram, on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// The sum and the Gram matrix of a = prologue(z) - center at every stride-th pixel, rounded to z's type:
//
//   z          (n, h, w, c); stride 1 or 2
//   in_scale, in_shift (c) float32, or both 0: the norm prologue relu(z * in_scale + in_shift), rounded to z's type
//   center     (c) float32, of z's type's numbers: the mean of a first tile of at most 128 pixels where it is more than
//              four deviations from zero, else 0
//   total      (c) float32: the sum of a
//   gram       (c, c) float32: a^T a
//   partials   (rows, c + 1, c) float32, to work in: one row a share of the pixels, at least 1 and at most
//              conv1x1_gram_rows, which is best
void conv1x1_gram(Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer total, Pointer gram,
                  Pointer partials, int64_t rows, int element_type, int64_t n, int64_t h, int64_t w, int64_t c,
                  int64_t stride, Pointer stream);

// The same sums of a about the center that conv1x1_gram found, in float64, if flag (1) int32 is not 0; nothing if it
// is.
//
//   partials   (rows, c + 1, c) float64: of a share of the pixels the rows of a^T a, and behind them the sum of a; at
//              least one row, and conv1x1_gram_exact_rows is best
void conv1x1_gram_exact(Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer flag, Pointer partials,
                        int64_t rows, int element_type, int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride,
                        Pointer stream);

int64_t conv1x1_gram_exact_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride);

int64_t conv1x1_gram_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride);

}  // namespace launch
