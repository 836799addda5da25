// What a tensor map says of a tensor of 16-bit elements, dimension 0 innermost and contiguous; 128-byte swizzle.
#pragma once
#include <array>
#include <cstdint>

struct MapShape {
    std::array<int64_t, 4> size;
    std::array<int, 4> box;             // in elements of the tensor, those that the stride skips included
    std::array<int, 4> element_stride;  // takes every n-th element of a box
    bool nan_fill;                      // outside of the tensor: TMA's OOB NaN, or zero
    std::array<int64_t, 4> pitch = {};  // elements between neighbours in a dimension, the first's left out; 0: dense
};
