// bottleneck_inference: the tensors as TMA sees them, the same for the GPU's maps and the emulator's.
#pragma once
#include "device/map_shape.h"
#include "kernels/bottleneck/plan.cuh"

namespace bottleneck_inference {

// `pixels` of a row of a halo, every kStride-th one of the map, 64 channels. Zero outside of the image.
template <class P>
MapShape input_shape(const Arguments& arguments, int pixels) {
    const Problem& p = arguments.problem;
    return {{arguments.slices * kSliceChannels, p.width, p.height, p.images},
            {kSliceChannels, P::kStride * (pixels - 1) + 1, 1, 1},
            {1, P::kStride, 1, 1},
            false};
}

// (filters, taps, channels): 64 filters x 64 channels of one tap.
inline MapShape weights_shape(int filters, int taps, int channels) {
    return {{channels, taps, filters, 1}, {kSliceChannels, 1, kFilterTile, 1}, {1, 1, 1, 1}, false};
}

// One row of a tile, 64 channels.
template <class P>
MapShape output_shape(const Problem& p) {
    return {{P::kOutputChannels, p.out_width, p.out_height, p.images},
            {kSliceChannels, P::kTileColumns, 1, 1},
            {1, 1, 1, 1},
            false};
}

}  // namespace bottleneck_inference
