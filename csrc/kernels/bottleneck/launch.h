// The launcher of bottleneck_inference: a whole bottleneck, c_in -> c -> c -> 4 c channels, c 64 or 128, for inference,
// on a GPU of compute capability 9.0. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// y1 = relu(conv(x, weight1) * scale1 + shift1)            1x1 y2 = relu(conv(y1, weight2) * scale2 + shift2)
// 3x3, padding 1, `stride` y  = relu(conv(y2, weight3) * scale3 + shift3 + shortcut) shortcut = x, or conv(x,
// downsample) * downsample_scale + downsample_shift, 1x1, `stride`
//
// y1 and y2 are rounded to x's type.
//
//   x            (n, h, w, c_in), c_in a multiple of 64; where the shortcut is x: 4 c, and stride 1; else up to 256
//   y            (n, p, q, 4 c), p = ceil(h / stride), q = ceil(w / stride)
//   weight1      (c, c_in)
//   weight2      (c, 3, 3, c): filter, row, column, input channel; what a channels_last weight is
//   weight3      (4 c, c)
//   downsample   (4 c, c_in), or 0: the shortcut is x; downsample_scale and downsample_shift then are 0 too
//   scale1 ..    float32, one a filter: of the BNs that follow the convolutions, as `scale` and `shift` everywhere
void bottleneck_inference(Pointer x, Pointer weight1, Pointer scale1, Pointer shift1, Pointer weight2, Pointer scale2,
                          Pointer shift2, Pointer weight3, Pointer scale3, Pointer shift3, Pointer downsample,
                          Pointer downsample_scale, Pointer downsample_shift, Pointer y, int element_type, int64_t n,
                          int64_t h, int64_t w, int64_t c_in, int64_t c, int64_t stride, bool weights_ready,
                          Pointer stream);

}  // namespace launch
