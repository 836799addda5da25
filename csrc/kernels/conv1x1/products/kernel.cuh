// conv1x1_products: both products of a masked gradient in one read of it, NHWC float16 or bfloat16, for sm_90a.
//
//     g = grad where not out <= 0, else 0             (P pixels x K filters)
//     a = prologue(z) - center, rounded twice         (P x C channels)
//     M = g^T a (K x C),  sum_g = sum_p g (K),        float32
//     t = g weight                                    (P x C), rounded
//
// A block has 64 or 128 of the channels and every so-many-th tile of 128 pixels. It keeps its columns of the weight in
// shared memory and its products in registers, and leaves them as one row of partials. A tile's z is turned into a
// where it lies; grad comes in slices of 64 filters, is masked where it lies, and is operand A of both products: as it
// is, for t, and transposed, for M. Consumer i computes the pixels from 64 i on of t, and every other slice's rows of
// M. t then takes the place of a. Rows of a tile outside of the map are zeros in g and in a.
//
// Of more than 256 filters, a cluster of blocks takes the place of a block: each has 256 of them, reads these of grad
// and has their rows of M, and the sums of t go to the block that owns the pixels (exchange.cuh).
#pragma once
#include "kernels/conv1x1/products/exchange.cuh"
#include "kernels/conv1x1/products/load.cuh"
#include "kernels/conv1x1/products/prologue.cuh"

namespace conv1x1_products {

template <class V>
struct Products {
    float of_pair[kPairs][V::kAccumulators];  // 64 filters of each pair of slices, by the block's channels
};

DEVICE void consumers_sync() { named_barrier_sync(kConsumerBarrier, kConsumerThreads); }

// ---- products ----

// t += g weight, of 64 pixels, over the filters of one slice.
template <class V>
DEVICE void multiply_t(float (&t)[V::kAccumulators], int stage, int slice, int consumer) {
    uint64_t gradient =
        matrix_descriptor(V::gradient(stage) + consumer * 64 * kPixelBytes, 16, kAtomBytes, Swizzle::k128B);
    uint64_t weights = matrix_descriptor(V::weights(0) + slice * kSliceChannels * kPixelBytes, V::kWeightSliceBytes,
                                         kAtomBytes, Swizzle::k128B);
#pragma unroll
    for (int step = 0; step < kSliceChannels / 16; ++step)
        wgmma_ss<V::kType, V::kChannels, Major::kK, Major::kMN>(
            t, advanced(gradient, step * 32), advanced(weights, step * kStepRowsBytes), slice + step > 0);
}

// M += g^T a, of one slice of 64 filters, over the tile's pixels.
template <class V>
DEVICE void multiply_products(float (&m)[V::kAccumulators], int stage, int slot) {
    uint64_t gradient = matrix_descriptor(V::gradient(stage), 16, kAtomBytes, Swizzle::k128B);
    uint64_t activations = matrix_descriptor(V::activations(slot), kSliceBytes, kAtomBytes, Swizzle::k128B);
#pragma unroll
    for (int step = 0; step < kTilePixels / 16; ++step)
        wgmma_ss<V::kType, V::kChannels, Major::kMN, Major::kMN>(m, advanced(gradient, step * kStepRowsBytes),
                                                                 advanced(activations, step * kStepRowsBytes), true);
}

// t, rounded, of the `place`-th 16 pixels that leave from this block.
template <class V>
DEVICE void stage_t(const float (&t)[V::kAccumulators], const Share& share, int slot, int place) {
#pragma unroll
    for (int j = 0; j < V::kChannels / 16; ++j) {
        SmemAddress matrices = matrix_row(V::t_slice(slot, j / 4, share.rank, share.ranks), place * 16, j % 4 * 2);
        const float* v = &t[8 * j];
        store_matrix_x4(matrices, pack<V::kType>(v[0], v[1]), pack<V::kType>(v[2], v[3]), pack<V::kType>(v[4], v[5]),
                        pack<V::kType>(v[6], v[7]));
    }
}

// Two slices at a time: each consumer needs both for t and has one of them for M. `use` counts the stages before.
template <class V>
DEVICE void multiply_pair(float (&t)[V::kAccumulators], float (&m)[V::kAccumulators], int pair, int use, int slot,
                          bool has_out, int consumer, int thread) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        Turn at = turn<V::kStages>(use + i);
        mbarrier_wait(V::full(at.slot), at.parity);
        make_gradient<V>(at.slot, (2 * pair + i) * kSliceChannels, has_out, thread);
    }
    fence_proxy_async();
    consumers_sync();
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2; ++i) multiply_t<V>(t, turn<V::kStages>(use + i).slot, 2 * pair + i, consumer);
    multiply_products<V>(m, turn<V::kStages>(use + consumer).slot, slot);
    wgmma_commit();
    wgmma_wait<0>();
    settled(t);
    settled(m);
#pragma unroll
    for (int i = 0; i < 2; ++i) release(V::empty(turn<V::kStages>(use + i).slot));
}

// ---- the end ----

template <class V>
DEVICE void write_partials(const Products<V>& m, const Arguments& arguments, const Share& share, int consumer,
                           int thread) {
    const Problem& problem = arguments.problem;
    float* row = arguments.partials + share.slot * int64_t{problem.filters} * (problem.channels + 1);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair)
#pragma unroll
        for (int i = 0; i < V::kAccumulators; i += 2) {
            int filter = share.first_filter + (2 * pair + consumer) * kSliceChannels + thread % kWarpgroup / 32 * 16 +
                         lane_index() / 4 + i / 2 % 2 * 8;
            int channel = share.first_channel + i / 4 * 8 + lane_index() % 4 * 2;
            if (filter >= problem.filters || channel >= problem.channels) continue;
            *reinterpret_cast<Floats2*>(row + filter * int64_t{problem.channels} + channel) =
                Floats2{{m.of_pair[pair][i], m.of_pair[pair][i + 1]}};
        }
    consumers_sync();
    int filter = share.first_filter + thread;
    if (share.first_channel > 0 || filter >= problem.filters) return;
    row[int64_t{problem.filters} * problem.channels + filter] = load_shared<float>(V::sum(thread));
}

// t of a tile whose products are done, to where it leaves from.
template <class V>
DEVICE void finish_t(float (&t)[V::kAccumulators], const Share& share, const Turn& at, int consumer_warp) {
    int place = consumer_warp;
    if constexpr (V::kClusters) {
        release(V::z_empty(at.slot));
        Exchange<V> exchange(share, consumer_warp);
        if (!exchange.owns()) return send<V>(t, exchange);
        receive<V>(t, exchange);
        mbarrier_wait(V::t_empty(), at.parity ^ 1);
        place = exchange.place;
    } else {
        // The other consumer's products have read the activations too.
        consumers_sync();
    }
    stage_t<V>(t, share, at.slot, place);
    fence_proxy_async();
    warp_sync();
    release(V::t_full(at.slot));
}

template <class V>
DEVICE void consume(const Parameters& parameters, int consumer) {
    const Arguments& arguments = parameters.arguments;
    const Tiles& tiles = arguments.problem.tiles;
    Share share = share_of<V>(arguments.problem);
    int thread = thread_index() - kWarpgroup, use = 0, z_use = 0;
    Products<V> m = {};
    mbarrier_wait(V::weights_full(), 0);
#pragma unroll 1
    for (int tile = share.slot; tile < tiles.count(); tile += share.slots, ++z_use) {
        Turn at = turn<V::kActivationSlots>(z_use);
        mbarrier_wait(V::z_full(at.slot), at.parity);
        make_activations<V>(V::activations(at.slot), arguments, tiles.first(tile), share.first_channel, thread);
        float t[V::kAccumulators];
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair, use += 2)
            multiply_pair<V>(t, m.of_pair[pair], pair, use, at.slot, arguments.has_out, consumer, thread);
        finish_t<V>(t, share, at, thread / 32);
    }
    write_partials<V>(m, arguments, share, consumer, thread);
}

// ---- kernels ----

template <class V>
DEVICE void init_barriers() {
    int ranks = 1;
    mbarrier_init(V::weights_full(), 1);
    for (int stage = 0; stage < V::kStages; ++stage) {
        mbarrier_init(V::full(stage), 1);
        mbarrier_init(V::empty(stage), kConsumerWarps);
    }
    if constexpr (V::kClusters) {
        ranks = cluster_size();
        mbarrier_init(V::t_empty(), 1);
        for (int slot = 0; slot < kExchangeSlots; ++slot)
            for (int warp = 0; warp < kConsumerWarps; ++warp) mbarrier_init(V::exchanged(slot, warp), 1);
    }
    for (int slot = 0; slot < V::kActivationSlots; ++slot) {
        mbarrier_init(V::z_full(slot), 1);
        mbarrier_init(V::t_full(slot), kConsumerWarps / ranks);
        mbarrier_init(V::z_empty(slot), V::kClusters ? kConsumerWarps : 1);
    }
    mbarrier_init_fence();
}

template <class V>
DEVICE void prepare() {
    if (thread_index() == 0) init_barriers<V>();
    int consumer_thread = thread_index() - kWarpgroup;  // the lane and the warp that will add to this sum
    if (consumer_thread >= 0) {
        int chunk = consumer_thread / 32, lane = lane_index();
        store_shared(V::sum(lane / 8 * kSliceChannels + chunk * kChunkChannels + lane % 8), 0.0f);
    }
    if constexpr (V::kClusters)
        cluster_sync();
    else
        cta_sync();
}

template <ElementType kType, int kChannels, bool kClusters>
__global__ void __launch_bounds__(kThreads, 1) conv1x1_products_kernel(const __grid_constant__ Parameters parameters) {
    using V = Variant<kType, kChannels, kClusters>;
    prepare<V>();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<24>();
        if (thread_index() == 0) load<V>(parameters);
        if (thread_index() == 32) load_activations<V>(parameters);
        if (thread_index() == 64) store<V>(parameters);
    } else {
        register_budget_increase<240>();
        consume<V>(parameters, warpgroup - 1);
    }
    if constexpr (kClusters) cluster_sync();  // the other blocks are done with this one's shared memory
}

struct SumRows {
    const float* partials;  // (rows, count)
    float* sums;            // (count)
    int rows, count;
};

constexpr int kSumThreads = 128;

// The rows' sum, in their order.
__global__ void __launch_bounds__(kSumThreads) sum_products_kernel(const __grid_constant__ SumRows p) {
    int i = 4 * (block_index() * kSumThreads + thread_index());
    if (i >= p.count) return;
    double total[4] = {};
#pragma unroll 4
    for (int row = 0; row < p.rows; ++row) {
        Floats4 more = load_global(p.partials + int64_t{row} * p.count + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) total[j] += more.value[j];
    }
    Floats4 sums;
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.value[j] = static_cast<float>(total[j]);
    store_global(p.sums + i, sums);
}

}  // namespace conv1x1_products
