// What the launchers of passes over a map share.
#pragma once
#include "kernels/passes/map_tiles.cuh"
#include "launch/check.h"

namespace launch {

// Tiles of `run_pixels`, each of which leaves a row of partials.
inline kernels::MapTiles runs_of_pixels(const Call& call, int64_t pixels, int64_t channels, int64_t run_pixels) {
    call.require(run_pixels > 0 && run_pixels < kMaxElements,
                 "a run must be of 1 to 2^31 - 1 pixels, got " + std::to_string(run_pixels));
    return kernels::tiles_of_pixels(as_int(pixels), as_int(channels), as_int(run_pixels));
}

}  // namespace launch
