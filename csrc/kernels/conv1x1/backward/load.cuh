// conv1x1_backward, warpgroup 0: one thread loads the weights, g and z, one x and the skip, one stores dx.
#pragma once
#include "kernels/conv1x1/backward/plan.cuh"

namespace conv1x1_backward {

template <class V>
DEVICE void load_weights(const BackwardParameters& parameters) {
    int slices = parameters.arguments.slices();
    mbarrier_arrive_expect_tx(V::weights_full(), slices * V::kWeightSliceBytes);
    for (int slice = 0; slice < slices; ++slice)
        tma_load_4d(V::weights(slice), parameters.weight, V::weights_full(), slice * kSliceChannels, 0, 0, 0);
}

template <class V>
DEVICE void load_gradients(const BackwardParameters& parameters) {
    const Tiles& tiles = parameters.arguments.tiles;
    bool has_z = parameters.arguments.norm.b != nullptr;
    SmemAddress full = V::gradient_full();
    load_weights<V>(parameters);
    int use = 0;
    for (int tile = block_index(); tile < tiles.count(); tile += block_count(), ++use) {
        Box box = tiles.first(tile);
        mbarrier_wait(V::gradient_empty(), turn<1>(use).parity ^ 1);
        mbarrier_arrive_expect_tx(full, has_z ? 2 * kSliceBytes : kSliceBytes);
        tma_load_4d(V::g(), parameters.g, full, 0, box.column, box.row, box.image);
        if (has_z) tma_load_4d(V::z(), parameters.z, full, 0, box.column, box.row, box.image);
    }
}

// 64 channels of the maps that there are.
template <class V>
DEVICE void load_stage(const BackwardParameters& parameters, const Box& box, int channel, const Turn& at) {
    const BackwardArguments& arguments = parameters.arguments;
    SmemAddress full = V::full(at.slot);
    mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
    mbarrier_arrive_expect_tx(full, arguments.stage_maps() * kSliceBytes);
    auto load = [&](SmemAddress to, const TensorMap& from) {
        tma_load_4d(to, from, full, channel, box.column, box.row, box.image);
    };
    load(V::x(at.slot), parameters.x);
    if (arguments.has_skip) load(V::skip(at.slot), parameters.skip);
    if (arguments.has_skip_out) load(V::skip_out(at.slot), parameters.skip_out);
}

template <class V>
DEVICE void load_stages(const BackwardParameters& parameters) {
    const Tiles& tiles = parameters.arguments.tiles;
    int channels = parameters.arguments.channels, use = 0;
    for (int tile = block_index(); tile < tiles.count(); tile += block_count()) {
        Box box = tiles.first(tile);
        for (int channel = 0; channel < channels; channel += kSliceChannels, ++use)
            load_stage<V>(parameters, box, channel, turn<V::kStages>(use));
    }
}

template <class V>
DEVICE void store_stages(const BackwardParameters& parameters) {
    const Tiles& tiles = parameters.arguments.tiles;
    int channels = parameters.arguments.channels, use = 0;
    for (int tile = block_index(); tile < tiles.count(); tile += block_count()) {
        Box box = tiles.first(tile);
        for (int channel = 0; channel < channels; channel += kSliceChannels, ++use) {
            Turn at = turn<V::kStages>(use);
            mbarrier_wait(V::finished(at.slot), at.parity);
            tma_store_4d(parameters.dx, V::x(at.slot), channel, box.column, box.row, box.image);
            tma_store_commit();
            tma_store_wait_read();
            mbarrier_arrive(V::empty(at.slot));
        }
    }
}

}  // namespace conv1x1_backward
