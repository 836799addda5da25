// What the launchers of the stem share: its images, and the tiles of its outputs.
#pragma once
#include "kernels/stem/image.cuh"
#include "launch/check.h"

namespace launch {

inline const uint16_t* images_at(const Call& call, Pointer x) {
    call.require(x != 0, "x is missing");
    call.require(x % sizeof(uint16_t) == 0, "x begins at an odd address, and its elements have two bytes");
    return reinterpret_cast<const uint16_t*>(x);
}

// The images have fewer elements than the output: 12 where that has 64.
inline pixels::Tiles stem_tiles_of(const Call& call, int64_t n, int64_t h, int64_t w) {
    call.require(n > 0 && h > 0 && w > 0, "x has an extent that is not positive");
    int64_t p = (h - 1) / stem::kStride + 1, q = (w - 1) / stem::kStride + 1;
    call.map("the output", n, p, q, stem::kFilters);
    return stem::stem_tiles(as_int(n), as_int(p), as_int(q));
}

}  // namespace launch
