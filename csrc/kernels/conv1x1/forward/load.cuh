// conv1x1, warpgroup 0: one thread brings both operands, as far ahead as there is room.
#pragma once
#include "kernels/conv1x1/forward/plan.cuh"

namespace conv1x1 {

// Whoever loads the weights says how many bytes the stage waits for.
template <class V>
DEVICE void load_weights(const TensorMap& weights, const Work& work, int slice, int stage) {
    mbarrier_arrive_expect_tx(V::full(stage), V::kStageBytes);
    tma_load_4d(V::weights(stage), weights, V::full(stage), (work.first_slice + slice) * kSliceChannels,
                work.first_filter, 0, 0);
}

// The weights of the first tile, as many as there is room for. Returns how many slices.
template <class V>
DEVICE int load_first_weights(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    Work work = V::work_at(problem, block_index());
    int slices = work_slices(problem, block_index());
    if (slices > V::kStages) slices = V::kStages;
    for (int slice = 0; slice < slices; ++slice) load_weights<V>(parameters.weights, work, slice, slice);
    return slices;
}

template <class V>
DEVICE void produce(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    tma_prefetch_map(parameters.input);
    tma_prefetch_map(parameters.weights);
    int loaded = parameters.arguments.weights_ready ? load_first_weights<V>(parameters) : 0, use = 0;
    wait_for_previous_grid();
    for (int index = block_index(); index < V::work_count(problem); index += block_count()) {
        Work work = V::work_at(problem, index);
        int column = work.pixels.column * problem.stride, row = work.pixels.row * problem.stride;
        for (int i = 0; i < work_slices(problem, index); ++i, ++use) {
            Turn at = turn<V::kStages>(use);
            mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
            if (use >= loaded) load_weights<V>(parameters.weights, work, i, at.slot);
            tma_load_4d(V::input(at.slot), parameters.input, V::full(at.slot), (work.first_slice + i) * kSliceChannels,
                        column, row, work.pixels.image);
        }
    }
}

}  // namespace conv1x1
