// conv1x1_gram_finish, warpgroup 0: one thread keeps the ring of stages full.
#pragma once
#include "kernels/conv1x1/gram_finish/plan.cuh"

namespace conv1x1_gram_finish {

// 64 channels of both tiles, to `first` and behind it.
DEVICE void load_tiles(SmemAddress first, const TensorMap& map, SmemAddress full, const Tiles& tiles, int pair,
                       int channel) {
    for (int i = 0; i < kConsumers; ++i) {
        Box box = tiles.first(kConsumers * pair + i);
        tma_load_4d(first + i * kSliceBytes, map, full, channel, box.column, box.row, box.image);
    }
}

template <class V>
DEVICE void load(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    Share share = share_of<V>(problem);
    int use = 0;
    for (int pair = share.slot; pair < problem.tile_pairs(); pair += share.slots)
        for (int i = 0; i < problem.slices() + V::kColumnSlices; ++i, ++use) {
            bool is_factor = i < problem.slices();
            int channel = is_factor ? i * kSliceChannels : share.first_column + (i - problem.slices()) * kSliceChannels;
            Turn at = turn<V::kStages>(use);
            SmemAddress full = V::full(at.slot);
            mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
            mbarrier_arrive_expect_tx(full, V::kTilesBytes + (is_factor ? V::kQuadraticBytes : V::kTilesBytes));
            load_tiles(V::z(at.slot, 0), parameters.z, full, problem.tiles, pair, channel);
            if (!is_factor) load_tiles(V::t(at.slot, 0), parameters.t, full, problem.tiles, pair, channel);
            for (int slice = 0; is_factor && slice < V::kColumnSlices; ++slice)
                tma_load_4d(V::quadratic(at.slot, slice), parameters.quadratic, full,
                            share.first_column + slice * kSliceChannels, channel, 0, 0);
        }
}

}  // namespace conv1x1_gram_finish
