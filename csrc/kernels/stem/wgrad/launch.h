// The launcher of stem_wgrad: the weight gradient of the stem's convolution, see kernels/stem/forward/launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// dz = a * g + b * z + c, rounded to g's type. The sum over the splits of partials is dW, the correlation of dz and x.
//
//   g, z      (n, p, q, 64)
//   a, b, c   (64) float32; z, b and c are 0 where the statistics are constants
//   x         as stem_act's
//   partials  (splits, 64, 7, 7, 3) float32: filter, row, column, channel; every element is written. `splits`, blocks
//             that share the tiles, is at least 1 and at most the tiles.
//
// A NaN or an infinity may make a NaN of more taps than the definition does: at the edge of the map one in x meets a dz
// that does not exist, and one in dz a pixel that does not, zeros both. The taps that the definition makes NaN always
// are.
void stem_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c, Pointer x, Pointer partials, int64_t splits,
                int element_type, int64_t n, int64_t h, int64_t w, Pointer stream);

// How many splits give every multiprocessor of the current GPU a block.
int64_t stem_wgrad_splits(int64_t n, int64_t h, int64_t w);

}  // namespace launch
