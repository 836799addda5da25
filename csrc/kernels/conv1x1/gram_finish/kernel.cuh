// conv1x1_gram_finish: the gradient of a 1x1 convolution's input, before the norm prologue, NHWC float16 or bfloat16,
// for sm_90a; a GEMM over pixels whose operand A is made of z and whose addend is t.
//
//     a = prologue(z) - center, rounded twice                                 (P pixels x C channels)
//     g = t + a quadratic + constant, zero where prologue(z) <= 0, rounded
//     sums of g and of g * (z - below_mean) over pixels (C each), float32
//
// The quadratic is the sum of two matrices of z's type, of its leading and its trailing bits: rounded to one it would
// bias the sums, as a's mean is not zero.
//
// A block has 64 or 128 of the columns and every so-many-th pair of tiles of 128 pixels. Warpgroup 0 keeps a ring of
// stages full: first, slice by slice, z with the quadratic's rows (multiply.cuh), then z and t of the block's own
// columns. Each of two consumer warpgroups has a tile; g takes the place of t and leaves from there. A thread adds up
// eight channels of some of the pixels as they were stored, over all its tiles. So z is read twice, and once more for
// every further block of columns, but out of the L2 cache.
#pragma once
#include "kernels/conv1x1/gram_finish/load.cuh"
#include "kernels/conv1x1/gram_finish/multiply.cuh"

namespace conv1x1_gram_finish {

struct ColumnSums {  // of eight channels
    Floats8 g = {}, gz = {};
};

// ---- from the accumulators to g, in the place of t ----

// Two neighbouring channels. A NaN in z lets g pass.
template <ElementType kType>
DEVICE uint32_t finished(const float* d, uint32_t t, uint32_t z, const Floats2& constant, const Norm& norm,
                         bool is_masked) {
    Floats2 add = unpack<kType>(t), a = unpack<kType>(activations::normalized<kType>(z, norm));
    float g[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        g[i] = d[i] + add.value[i] + constant.value[i];
        if (is_masked && a.value[i] <= 0.0f) g[i] = 0.0f;
    }
    return pack<kType>(g[0], g[1]);
}

// 64 columns from `first_column` on; `d` holds them from register `first` of each block on.
template <class V>
DEVICE void stage_gradient(const Accumulators<V>& d, int first, const Arguments& arguments, int first_column, int stage,
                           const Consumer& consumer) {
    int channels = arguments.problem.channels;
#pragma unroll
    for (int j = 0; j < kSliceChannels / 16; ++j) {
        Norm norm[2];
        Floats2 constant[2] = {};
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            int column = first_column + 16 * j + 8 * eight + lane_index() % 4 * 2;
            norm[eight] = activations::load_norm(arguments.prologue, column, channels);
            if (column < channels) constant[eight] = load_pair(arguments.constant + column);
        }
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            int pixel = block * 64 + consumer.warp * 16;
            SmemAddress at = matrix_row(V::t(stage, consumer.index), pixel, 2 * j);
            uint32_t g[4], z[4];
            load_matrix_x4(at, g);
            load_matrix_x4(matrix_row(V::z(stage, consumer.index), pixel, 2 * j), z);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                g[i] = finished<V::kType>(&d.block[block][first + 8 * j + 2 * i], g[i], z[i], constant[i / 2],
                                          norm[i / 2], arguments.prologue.scale != nullptr);
            store_matrix_x4(at, g[0], g[1], g[2], g[3]);
        }
    }
}

// A thread has one chunk of every sixteenth pixel.
template <class V>
DEVICE void add_sums(ColumnSums& sums, const Arguments& arguments, const Box& box, int first_column, int stage,
                     const Consumer& consumer) {
    constexpr int kChunks = kSliceChannels / kChunkChannels;
    int chunk = consumer.thread % kChunks, channel = first_column + chunk * kChunkChannels;
    if (channel >= arguments.problem.channels) return;
    Floats8 mean = load_floats8(arguments.below_mean + channel);
#pragma unroll
    for (int pixel = consumer.thread / kChunks; pixel < kTilePixels; pixel += kWarpgroup / kChunks) {
        Floats8 g = widen<V::kType>(load_shared<Chunk>(chunk_address(V::t(stage, consumer.index), pixel, chunk)));
        Floats8 z = widen<V::kType>(load_shared<Chunk>(chunk_address(V::z(stage, consumer.index), pixel, chunk)));
        if (!arguments.problem.tiles.inside(box, pixel)) continue;
        add(sums.g, g);
#pragma unroll
        for (int i = 0; i < kChunkChannels; ++i)
            sums.gz.value[i] = fmaf(g.value[i], z.value[i] - mean.value[i], sums.gz.value[i]);
    }
}

template <class V>
DEVICE void finish(const Accumulators<V>& d, ColumnSums (&sums)[V::kColumnSlices], const Parameters& parameters,
                   const Box& box, int first_column, int first_use, const Consumer& consumer) {
#pragma unroll
    for (int slice = 0; slice < V::kColumnSlices; ++slice) {
        Turn at = turn<V::kStages>(first_use + slice);
        int column = first_column + slice * kSliceChannels;
        mbarrier_wait(V::full(at.slot), at.parity);
        stage_gradient<V>(d, slice * kSliceChannels / 2, parameters.arguments, column, at.slot, consumer);
        fence_proxy_async();
        consumer.sync();
        if (consumer.thread == 0) {
            tma_store_4d(parameters.g, V::t(at.slot, consumer.index), column, box.column, box.row, box.image);
            tma_store_commit();
        }
        add_sums<V>(sums[slice], parameters.arguments, box, column, at.slot, consumer);
        if (consumer.thread == 0) tma_store_wait_read();
        fence_proxy_async();  // read by these threads, written by TMA next
        warp_sync();
        release<V>(first_use + slice);
    }
}

// ---- the end ----

template <class V>
DEVICE void write_sums(const ColumnSums (&sums)[V::kColumnSlices], const Arguments& arguments, const Share& share,
                       int thread) {
    int channels = arguments.problem.channels;
    float* row = arguments.partials + share.slot * int64_t{2} * channels;
#pragma unroll
    for (int slice = 0; slice < V::kColumnSlices; ++slice) {
        Floats8 g = V::sums().total(sums[slice].g, thread), gz = V::sums().total(sums[slice].gz, thread);
        int channel = share.first_column + slice * kSliceChannels + thread * kChunkChannels;
        if (thread >= kSliceChannels / kChunkChannels || channel >= channels) continue;
        store_floats8(row + channel, g);
        store_floats8(row + channels + channel, gz);
    }
}

template <class V>
DEVICE void consume(const Parameters& parameters, int index) {
    const Arguments& arguments = parameters.arguments;
    const Problem& problem = arguments.problem;
    Share share = share_of<V>(problem);
    Consumer consumer(index);
    ColumnSums sums[V::kColumnSlices];
    int use = 0;
#pragma unroll 1
    for (int pair = share.slot; pair < problem.tile_pairs(); pair += share.slots) {
        Accumulators<V> d;
        multiply<V>(d, arguments, use, consumer);
        use += problem.slices();
        finish<V>(d, sums, parameters, problem.tiles.first(kConsumers * pair + index), share.first_column, use,
                  consumer);
        use += V::kColumnSlices;
    }
    write_sums<V>(sums, arguments, share, thread_index() - kWarpgroup);
}

// ---- kernel ----

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

template <ElementType kType, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    conv1x1_gram_finish_kernel(const __grid_constant__ Parameters parameters) {
    using V = Variant<kType, kColumns>;
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

}  // namespace conv1x1_gram_finish
