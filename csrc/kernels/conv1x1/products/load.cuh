// conv1x1_products, warpgroup 0: one thread loads the weights and grad, one z, one stores.
#pragma once
#include "kernels/conv1x1/products/plan.cuh"

namespace conv1x1_products {

template <class V>
DEVICE void load_weights(const TensorMap& map, const Share& share) {
    mbarrier_arrive_expect_tx(V::weights_full(), V::kChannelSlices * V::kWeightSliceBytes);
    for (int slice = 0; slice < V::kChannelSlices; ++slice)
        tma_load_4d(V::weights(slice), map, V::weights_full(), share.first_channel + slice * kSliceChannels,
                    share.first_filter, 0, 0);
}

template <class V>
DEVICE void load_z(const TensorMap& map, const Box& box, int stride, int first_channel, const Turn& at) {
    mbarrier_wait(V::z_empty(at.slot), at.parity ^ 1);
    mbarrier_arrive_expect_tx(V::z_full(at.slot), V::kActivationBytes);
    for (int slice = 0; slice < V::kChannelSlices; ++slice)
        tma_load_4d(V::activations(at.slot) + slice * kSliceBytes, map, V::z_full(at.slot),
                    first_channel + slice * kSliceChannels, box.column * stride, box.row * stride, box.image);
}

template <class V>
DEVICE void load_gradient(const Parameters& parameters, const Box& box, int first_filter, const Turn& at) {
    bool has_out = parameters.arguments.has_out;
    mbarrier_wait(V::empty(at.slot), at.parity ^ 1);
    mbarrier_arrive_expect_tx(V::full(at.slot), has_out ? V::kStageBytes : kSliceBytes);
    tma_load_4d(V::gradient(at.slot), parameters.grad, V::full(at.slot), first_filter, box.column, box.row, box.image);
    if (!has_out) return;
    tma_load_4d(V::output(at.slot), parameters.out, V::full(at.slot), first_filter, box.column, box.row, box.image);
}

template <class V>
DEVICE void load(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    Share share = share_of<V>(problem);
    load_weights<V>(parameters.weight, share);
    int use = 0;
    for (int tile = share.slot; tile < problem.tiles.count(); tile += share.slots) {
        Box box = problem.tiles.first(tile);
        for (int filter = 0; filter < kBlockFilters; filter += kSliceChannels, ++use)
            load_gradient<V>(parameters, box, share.first_filter + filter, turn<V::kStages>(use));
    }
}

template <class V>
DEVICE void load_activations(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    Share share = share_of<V>(problem);
    int use = 0;
    for (int tile = share.slot; tile < problem.tiles.count(); tile += share.slots, ++use)
        load_z<V>(parameters.z, problem.tiles.first(tile), problem.stride, share.first_channel,
                  turn<V::kActivationSlots>(use));
}

// t of the pixels that this rank owns, all of them where there is no cluster; and makes room for more.
template <class V>
DEVICE void store(const Parameters& parameters) {
    const Problem& problem = parameters.arguments.problem;
    Share share = share_of<V>(problem);
    int use = 0;
    for (int tile = share.slot; tile < problem.tiles.count(); tile += share.slots, ++use) {
        Box box = problem.tiles.pixel(problem.tiles.first(tile), share.rank * kTilePixels / share.ranks);
        Turn at = turn<V::kActivationSlots>(use);
        mbarrier_wait(V::t_full(at.slot), at.parity);
        for (int slice = 0; slice < V::kChannelSlices; ++slice)
            tma_store_4d(parameters.t, V::t_slice(at.slot, slice, share.rank, share.ranks),
                         share.first_channel + slice * kSliceChannels, box.column, box.row, box.image);
        tma_store_commit();
        tma_store_wait_read();
        mbarrier_arrive(V::kClusters ? V::t_empty() : V::z_empty(at.slot));
    }
}

}  // namespace conv1x1_products
