// conv1x1, warpgroup 0: one thread brings both operands, as far ahead as there is room.
#pragma once
#include "kernels/conv1x1_plan.cuh"

namespace conv1x1 {

template <class V>
DEVICE void produce(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    int use = 0;
    for (int index = block_index(); index < V::work_count(problem); index += block_count()) {
        Work work = V::work_at(problem, index);
        int column = work.pixels.column * problem.stride, row = work.pixels.row * problem.stride;
        for (int i = 0; i < work_slices(problem, index); ++i, ++use) {
            Turn at = turn<V::kStages>(use);
            int channel = (work.first_slice + i) * kSliceChannels;
            mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
            mbarrier_arrive_expect_tx(V::full(at.slot), V::kStageBytes);
            tma_load_4d(V::input(at.slot), parameters.input, V::full(at.slot), channel, column, row, work.pixels.image);
            tma_load_4d(V::weights(at.slot), parameters.weights, V::full(at.slot), channel, work.first_filter, 0, 0);
        }
    }
}

}  // namespace conv1x1
