// conv1x1_gram: the sum and the Gram matrix of a 1x1 convolution's input, NHWC float16 or bfloat16, for sm_90a.
//
//     a = prologue(z) - center, rounded twice      (P pixels x C channels, at every stride-th pixel)
//     S = sum_p a (C),  G = a^T a (C x C),         float32
//     center    the mean of the map's first tile where it is more than four deviations from zero, else 0
//
// A block has 64 x 64 or 128 x 128 elements of G, on or above the diagonal, which it accumulates in registers over
// every so-many-th tile of 128 pixels (plan.cuh) and leaves in a row of partials. Warpgroup 0 keeps a ring of operands
// full, each a tile's pixels by the block's rows or, off the diagonal, by its columns. Two consumer warpgroups turn z
// into a where it lies, and multiply it, 64 rows each; a^T and a are the same bytes, as pixels are the rows of both
// operands in shared memory. One tile is turned into a while the one before is multiplied. The first tile to arrive is
// the map's, of which every block finds the centre by itself: no launch comes before. Pixels outside of the map are
// zeros in a.
#pragma once
#include "kernels/conv1x1/gram/activations.cuh"
#include "kernels/conv1x1/gram/load.cuh"

namespace conv1x1_gram {

// ---- the ring ----

template <class V>
DEVICE void release(int use) {
    if (lane_index() == 0) mbarrier_arrive(V::empty(turn<V::kStages>(use).slot));
}

template <class V>
DEVICE void await(int use) {
    Turn at = turn<V::kStages>(use);
    mbarrier_wait(V::full(at.slot), at.parity);
}

// ---- products ----

// A consumer's 64 rows of the block, over the pixels of the tile.
template <class V>
DEVICE void multiply(float (&g)[V::kAccumulators], int row_use, int column_use, int consumer) {
    uint64_t rows = matrix_descriptor(V::operand(turn<V::kStages>(row_use).slot) + consumer * kSliceBytes, 16,
                                      kAtomBytes, Swizzle::k128B);
    uint64_t columns =
        matrix_descriptor(V::operand(turn<V::kStages>(column_use).slot), kSliceBytes, kAtomBytes, Swizzle::k128B);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTilePixels / 16; ++step)
        wgmma_ss<V::kType, V::kChannels, Major::kMN, Major::kMN>(g, advanced(rows, step * kStepRowsBytes),
                                                                 advanced(columns, step * kStepRowsBytes), true);
    wgmma_commit();
}

// Adds a run of products to the row of partials: an accumulator that ran over all pixels would err in proportion to
// their number, since tensor cores truncate. What the first run writes, later ones add to, in L2: registers have no
// room for both.
template <class V>
DEVICE void add_products(float (&g)[V::kAccumulators], const Arguments& arguments, const Share& share, int consumer,
                         int warp, bool is_first) {
    int channels = arguments.problem.channels;
    float* to = arguments.partials + share.slot * (int64_t{channels} + 1) * channels;
#pragma unroll
    for (int i = 0; i < V::kAccumulators; i += 2) {
        int row = share.first_row + consumer * 64 + warp * 16 + lane_index() / 4 + i / 2 % 2 * 8;
        int column = share.first_column + i / 4 * 8 + lane_index() % 4 * 2;
        if (row >= channels || column >= channels) continue;
        float* pair = to + int64_t{row} * channels + column;
        Floats2 before = is_first ? Floats2{} : load_pair(pair);
        store_to(pair, Floats2{{before.value[0] + g[i], before.value[1] + g[i + 1]}});
        g[i] = g[i + 1] = 0.0f;
    }
}

// S, behind the rows of G; and the centre, which all blocks of these channels have found alike.
template <class V>
DEVICE void write_vectors(const Column<V>& column, const Floats8& own, const Arguments& arguments, const Share& share,
                          int thread) {
    Floats8 sum = V::sums().total(own, thread);
    int channels = arguments.problem.channels;
    if (column.first_pixel > 0 || column.channel >= channels) return;
    int64_t row = share.slot * (int64_t{channels} + 1) + channels;
    store_floats8(arguments.partials + row * channels + column.channel, sum);
    if (share.slot == 0) store_floats8(arguments.center + column.channel, column.center);
}

// Of the rows, and of the columns where they are others: on the diagonal the block has one operand a tile.
template <class V>
DEVICE void find_centers(Column<V>& rows, Column<V>& columns, const Arguments& arguments, int operands, int thread) {
    await<V>(0);
    find_center(rows, arguments, 0, thread);
    fence_proxy_async();  // read by these threads, written by TMA next
    release<V>(0);
    if (operands == 1) return;
    await<V>(1);
    find_center(columns, arguments, 1, thread);
    fence_proxy_async();
    release<V>(1);
}

template <class V>
DEVICE void consume(const Parameters& parameters, int consumer) {
    const Arguments& arguments = parameters.arguments;
    const Tiles& tiles = arguments.problem.tiles;
    Share share = share_of<V>(arguments.problem);
    bool has_rows = consumer < V::kSlices;
    int thread = thread_index() - kWarpgroup, operands = share.operands(), use = operands;
    Column<V> rows(share.first_row, thread), columns(share.first_column, thread);
    find_centers(rows, columns, arguments, operands, thread);
    float g[V::kAccumulators] = {};
    Floats8 sum = {}, unused = {};
    int tile = share.slot;
#pragma unroll 1
    do {
        int first = tile, end = tile + kRunTiles * share.slots;
#pragma unroll 1
        for (; tile < tiles.count() && tile < end; tile += share.slots, use += operands) {
            Box box = tiles.first(tile);
            int column_use = use + operands - 1;
            await<V>(use);
            make_activations(rows, arguments, box, use, sum);
            if (!share.is_diagonal()) {
                await<V>(column_use);
                make_activations(columns, arguments, box, column_use, unused);
            }
            fence_proxy_async();
            named_barrier_sync(kConsumerBarrier, kConsumerThreads);
            if (has_rows) multiply<V>(g, use, column_use, consumer);
            if (tile == first) continue;
            wgmma_wait<1>();
            for (int before = use - operands; before < use; ++before) release<V>(before);
        }
        wgmma_wait<0>();
        settled(g);
        for (int last = use - operands; last < use; ++last) release<V>(last);
        if (has_rows) add_products<V>(g, arguments, share, consumer, thread % kWarpgroup / 32, first == share.slot);
    } while (tile < tiles.count());
    if (share.is_diagonal()) write_vectors(rows, sum, arguments, share, thread);
}

// ---- kernels ----

template <class V>
DEVICE void prepare() {
    if (thread_index() == 0) {
        for (int stage = 0; stage < V::kStages; ++stage) {
            mbarrier_init(V::full(stage), 1);
            mbarrier_init(V::empty(stage), kConsumerWarps);
        }
        mbarrier_init_fence();
    }
    cta_sync();
}

template <ElementType kType, int kChannels>
__global__ void __launch_bounds__(kThreads, 1) conv1x1_gram_kernel(const __grid_constant__ Parameters parameters) {
    using V = Variant<kType, kChannels>;
    prepare<V>();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<24>();
        if (thread_index() == 0) load<V>(parameters);
    } else {
        register_budget_increase<240>();
        consume<V>(parameters, warpgroup - 1);
    }
}

}  // namespace conv1x1_gram
