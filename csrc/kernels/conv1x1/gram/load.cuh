// conv1x1_gram, warpgroup 0: one thread brings the operands, as far ahead as there is room.
#pragma once
#include "kernels/conv1x1/gram/plan.cuh"

namespace conv1x1_gram {

template <class V>
DEVICE void load_tile(const Parameters& parameters, const Share& share, int tile, int use) {
    const Problem& problem = parameters.arguments.problem;
    Box box = problem.tiles.first(tile);
    for (int operand = 0; operand < share.operands(); ++operand) {
        Turn at = turn<V::kStages>(use + operand);
        mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
        mbarrier_arrive_expect_tx(V::full(at.slot), V::kOperandBytes);
        for (int slice = 0; slice < V::kSlices; ++slice)
            tma_load_4d(V::operand(at.slot) + slice * kSliceBytes, parameters.z, V::full(at.slot),
                        share.first_channel(operand) + slice * kSliceChannels, box.column * problem.stride,
                        box.row * problem.stride, box.image);
    }
}

template <class V>
DEVICE void load(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    Share share = share_of<V>(problem);
    load_tile<V>(parameters, share, 0, 0);  // for the centre
    int use = share.operands();
    for (int tile = share.slot; tile < problem.tiles.count(); tile += share.slots, use += share.operands())
        load_tile<V>(parameters, share, tile, use);
}

}  // namespace conv1x1_gram
