// conv3x3_halo: the tensors as TMA sees them, the same for the GPU's maps and the emulator's.
#pragma once
#include "device/map_shape.h"
#include "kernels/conv3x3_halo_plan.cuh"

namespace conv3x3_halo {

// One row of a slice; at stride 2 every second column of it. What lies outside of the image is OOB NaN for a prologue
// to turn into zero, or zero.
template <class P>
MapShape input_shape(const Problem& p, bool has_prologue) {
    int columns = P::kStride * (P::kLoadPixels - 1) + 1;
    return {{P::kChannels, p.width, p.height, p.images},
            {kSliceChannels, columns, 1, 1},
            {1, P::kStride, 1, 1},
            has_prologue};
}

// (K, 3, 3, C): one tap and slice of the filters that the consumers multiply by at once.
template <class P>
MapShape weights_shape() {
    int filters = P::kWeightsInRegisters ? kFilterTile : kConsumers * kFilterTile;
    return {{P::kChannels, kTaps, P::kChannels, 1}, {kSliceChannels, 1, filters, 1}, {1, 1, 1, 1}, false};
}

// The output or the residual: one row of a tile, 64 channels.
template <class P>
MapShape output_shape(const Problem& p) {
    return {
        {P::kChannels, p.out_width, p.out_height, p.images}, {kSliceChannels, kTileColumns, 1, 1}, {1, 1, 1, 1}, false};
}

}  // namespace conv3x3_halo
