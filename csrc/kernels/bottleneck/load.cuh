// bottleneck_inference, warpgroup 0: brings halos and weights into shared memory.
#pragma once
#include "kernels/bottleneck/plan.cuh"

namespace bottleneck_inference {

constexpr int kInputWarp = 0, kWeightsWarp = 1;

// ---- input ----

// One slice of a tile's halo.
template <class P>
DEVICE void load_slice(const Parameters& parameters, const Tile& tile, int slice, int slot) {
    int column = P::kStride * tile.column - 1;
    if (lane_index() == 0) mbarrier_arrive_expect_tx(P::input_full(slot), P::kHaloPixels * kPixelBytes);
    warp_sync();
    if (lane_index() >= P::kHaloRows) return;
    MapRow from = halo_row<P>(parameters.arguments.problem, tile, lane_index());
    SmemAddress to = P::input(slot) + lane_index() * P::kRowPixels * kPixelBytes;
    tma_load_4d(to, parameters.input, P::input_full(slot), slice * kSliceChannels, column, from.row, from.image);
    if constexpr (P::kStride == 2)
        tma_load_4d(to + P::kOddPixels * kPixelBytes, parameters.input_even, P::input_full(slot),
                    slice * kSliceChannels, column + 1, from.row, from.image);
}

// The pixels that a strided shortcut projects: those under the central tap.
template <class P>
DEVICE void load_strided(const Parameters& parameters, const Tile& tile) {
    int slices = parameters.arguments.slices;
    if (lane_index() == 0) mbarrier_arrive_expect_tx(P::strided_full(), slices * P::kTileBytes);
    warp_sync();
    if (lane_index() >= P::kTileRows) return;
    MapRow from = halo_row<P>(parameters.arguments.problem, tile, P::kStride * lane_index() + 1);
    for (int slice = 0; slice < slices; ++slice)
        tma_load_4d(P::strided(slice) + lane_index() * P::kTileRowPixels * kPixelBytes, parameters.input_even,
                    P::strided_full(), slice * kSliceChannels, P::kStride * tile.column, from.row, from.image);
}

template <class P>
DEVICE void load_inputs(const Parameters& parameters) {
    const Arguments& arguments = parameters.arguments;
    int use = 0, tiles = 0;
    for (int index = block_index(); index < P::tile_count(arguments.problem); index += block_count(), ++tiles) {
        Tile tile = P::tile_at(arguments.problem, index);
        for (int slice = 0; slice < arguments.slices; ++slice, ++use) {
            Turn at = turn<P::kInputSlots>(use);
            mbarrier_wait(P::input_empty(at.slot), at.parity ^ 1);
            load_slice<P>(parameters, tile, slice, at.slot);
        }
        if constexpr (!P::kKeepsInput) {
            mbarrier_wait(P::strided_empty(), tiles % 2 ^ 1);
            load_strided<P>(parameters, tile);
        }
    }
}

// ---- weights ----

// Blocks of filters x 64 channels in the order in which the consumers multiply by them, once for every tile;
// load(map, slice, tap, first_filter). W2's are not among those that stay in shared memory.
template <class P, class Load>
DEVICE void weight_blocks(const Parameters& parameters, const Load& load) {
    int slices = parameters.arguments.slices;
    for (int slice = 0; slice < slices; ++slice) load(parameters.weight1, slice, 0, 0);
    if constexpr (!P::kResident)
        for (int tap = 0; tap < kTaps; ++tap)
            for (int slice = 0; slice < P::kSlices; ++slice) load(parameters.weight2, slice, tap, 0);
    for (int pass = 0; pass < kExpansion; ++pass) {
        int filter = pass * P::kChannels;
        for (int slice = 0; slice < P::kSlices; ++slice) load(parameters.weight3, slice, 0, filter);
        if constexpr (!P::kIdentity)
            for (int slice = 0; slice < slices; ++slice) load(parameters.downsample, slice, 0, filter);
    }
}

template <class P>
DEVICE void stream_weights(const Parameters& parameters) {
    int use = 0;
    for (int index = block_index(); index < P::tile_count(parameters.arguments.problem); index += block_count())
        weight_blocks<P>(parameters, [&](const TensorMap& map, int slice, int tap, int filter) {
            for (int part = 0; part < P::kFilterParts; ++part, ++use) {
                Turn at = turn<P::kStages>(use);
                mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);
                mbarrier_arrive_expect_tx(P::weights_full(at.slot), kFilterBytes);
                tma_load_4d(P::weights(at.slot), map, P::weights_full(at.slot), slice * kSliceChannels, tap,
                            filter + part * kFilterTile, 0);
            }
        });
}

// Every filter once; W2 through the input's slots, before they have their first use.
template <class P>
DEVICE void load_resident_weights(const Parameters& parameters) {
    mbarrier_arrive_expect_tx(P::filters_full(), kTaps * kFilterBytes);
    for (int tap = 0; tap < kTaps; ++tap)
        tma_load_4d(P::input(0) + tap * kFilterBytes, parameters.weight2, P::filters_full(), 0, tap, 0, 0);
    mbarrier_arrive_expect_tx(P::weights_full(0), P::kStages * kFilterBytes);
    int block = 0;
    weight_blocks<P>(parameters, [&](const TensorMap& map, int slice, int tap, int filter) {
        tma_load_4d(P::weights(block++), map, P::weights_full(0), slice * kSliceChannels, tap, filter, 0);
    });
}

template <class P>
DEVICE void produce(const Parameters& parameters) {
    int warp = warp_uniform(thread_index() / 32);
    if (warp == kInputWarp) {
        tma_prefetch_map(parameters.input);
        mbarrier_wait(P::slots_ready(), 0);
        wait_for_previous_grid();
        load_inputs<P>(parameters);
    } else if (warp == kWeightsWarp && lane_index() == 0) {
        if (!parameters.arguments.weights_ready) wait_for_previous_grid();
        if constexpr (P::kResident)
            load_resident_weights<P>(parameters);
        else
            stream_weights<P>(parameters);
    }
}

}  // namespace bottleneck_inference
