// The launchers of conv3x3_halo_split: conv3x3_halo_act for batches of few and small maps. Conventions: launch.h.
#pragma once
#include "launch/launch.h"

namespace launch {

// y = act(conv(x, weight) * scale + shift + residual): conv3x3_halo_act without a prologue, c and k any multiples of
// 64.
//
//   splits     how many blocks share each tile, 1 to c / 64: see conv3x3_halo_splits
//   products   (conv3x3_halo_split_tiles, splits, 4096) float32, to work in; 0 where splits is 1
//   arrivals   (conv3x3_halo_split_tiles) int32, zeros, and zeros again afterwards; 0 where splits is 1. Two launches
//              that may run at the same time must not share them.
void conv3x3_halo_split_act(Pointer x, Pointer weight, Pointer scale, Pointer shift, Pointer residual, Pointer y,
                            Pointer products, Pointer arrivals, int64_t splits, int element_type, int64_t n, int64_t h,
                            int64_t w, int64_t c, int64_t k, int64_t stride, bool relu, bool weights_ready,
                            Pointer stream);

// Tiles of pixels and filters.
int64_t conv3x3_halo_split_tiles(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride);

// How many blocks should share a tile so that the multiprocessors of the current GPU have work; 0 where
// conv3x3_halo_act, whose blocks take larger tiles with all of their filters, should be called instead.
int64_t conv3x3_halo_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride);

}  // namespace launch
