// conv3x3_halo: the tensors as TMA sees them, the same for the GPU's maps and the emulator's.
#pragma once
#include "device/map_shape.h"
#include "kernels/conv3x3/forward/plan.cuh"

namespace conv3x3_halo {

// One row of a slice; at stride 2 every second column of it. What lies outside of the image is OOB NaN for a prologue
// to turn into zero, or zero.
template <class P>
MapShape input_shape(const Problem& p, bool has_prologue, int channels = P::kChannels) {
    int columns = P::kStride * P::kLoadPixels;
    return {
        {channels, p.width, p.height, p.images}, {kSliceChannels, columns, 1, 1}, {1, P::kStride, 1, 1}, has_prologue};
}

// (K, 3, 3, C): one tap and slice of `box_filters` filters.
inline MapShape weights_shape(int channels, int filters, int box_filters) {
    return {{channels, kTaps, filters, 1}, {kSliceChannels, 1, box_filters, 1}, {1, 1, 1, 1}, false};
}

// Those that the consumers multiply by at once.
template <class P>
MapShape weights_shape() {
    return weights_shape(P::kChannels, P::kFilters, P::kFilterConsumers * kFilterTile);
}

// The output or the residual: one row of a tile, 64 filters.
template <class P>
MapShape output_shape(const Problem& p, int filters = P::kFilters) {
    return {{filters, p.out_width, p.out_height, p.images}, {kSliceChannels, kTileColumns, 1, 1}, {1, 1, 1, 1}, false};
}

}  // namespace conv3x3_halo
