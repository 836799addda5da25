// conv3x3_halo, consumers: what happens to 64 filters of a tile between the accumulator and global memory.
//
// Register 4 * row + 2 * half + i of a thread holds filter 16 * warp + lane / 4 + 8 * half at pixel
// (row, 2 * (lane % 4) + i) of the tile. A thread thus has two filters, and shares each with three neighbours.
#pragma once
#include "device/global.cuh"
#include "kernels/conv3x3/forward/load.cuh"

namespace conv3x3_halo {

constexpr int kStagedRowBytes = kTileColumns * kPixelBytes;
constexpr int kFirstConsumerBarrier = 1, kAllConsumersBarrier = kFirstConsumerBarrier + kConsumers;

struct Arguments {
    Problem problem;
    const float* in_scale;  // (C,) the prologue; null: none
    const float* in_shift;  // (C,)
    float packed_limit;     // see fits_packed
    const float* scale;     // (K,) or null: ones
    const float* shift;     // (K,) or null: zeros
    bool relu, has_residual;
    bool weights_ready;  // no grid that may still run writes them
    float* partials;     // (partial_rows, 3, K): count, mean, M2
    int partial_rows;    // at least as many as blocks; the blocks leave zeros in the rows that they do not need
};

// Statistics come of z itself: with them there is no residual, which the compiler should know.
template <Epilogue kEpilogue>
DEVICE bool has_residual(const Arguments& arguments) {
    return kEpilogue == Epilogue::kScaleShiftAct && arguments.has_residual;
}

// What a consumer warpgroup is and carries along.
struct Consumer {
    int index, thread, barrier;
    int residual_uses = 0;
    int pixels = 0;  // counted into the moments so far

    DEVICE explicit Consumer(int index)
        : index(index), thread(thread_index() % kWarpgroup), barrier(kFirstConsumerBarrier + index) {}
    DEVICE int filter(int half) const { return thread / 32 * 16 + lane_index() / 4 + 8 * half; }
    DEVICE void sync() const { named_barrier_sync(barrier, kWarpgroup); }
};

// ---- statistics ----

struct alignas(8) Moments {
    float mean, m2;
};

// Chan, Golub and LeVeque 1983: the moments of both sets together.
DEVICE Moments merged(const Moments& a, float a_count, const Moments& b, float b_count) {
    if (a_count == 0) return b;
    float delta = b.mean - a.mean, share = b_count / (a_count + b_count);
    return {a.mean + delta * share, a.m2 + b.m2 + delta * delta * a_count * share};
}

DEVICE float sum_of_four_lanes(float value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

// The pixels of a tile that exist.
struct Extent {
    uint32_t rows;  // bit r: row r
    int columns, count;

    DEVICE bool has_row(int row) const { return rows >> row & 1; }
    DEVICE bool has_column(int i) const { return lane_index() % 4 * 2 + i < columns; }  // of the thread's two
};

template <class P>
DEVICE Extent extent(const Problem& problem, const Tile& tile) {
    Extent result = {0, problem.out_width - tile.column, 0};
    if (result.columns > kTileColumns) result.columns = kTileColumns;
    OutputRows rows(problem, tile.row);
#pragma unroll 1
    for (int row = 0; row < P::kTileRows; ++row) {
        MapRow at = rows.next();
        if (at.row == problem.out_height || at.image >= problem.images) continue;
        result.rows |= 1u << row;
        result.count += result.columns;
    }
    return result;
}

// z as it will be stored, in pairs of pixels: the word of registers 2 * i and 2 * i + 1. Half the registers of the
// accumulator, so that the statistics have room; a value is widened again wherever it is used.
template <class P, ElementType kType>
struct Rounded {
    uint32_t word[P::kAccumulators / 2];

    DEVICE explicit Rounded(const float (&d)[P::kAccumulators]) {
#pragma unroll
        for (int i = 0; i < P::kAccumulators / 2; ++i) word[i] = pack<kType>(d[2 * i], d[2 * i + 1]);
    }
    DEVICE float operator[](int i) const { return widen<kType>(static_cast<uint16_t>(word[i / 2] >> i % 2 * 16)); }
};

// Mean, then squared deviations from it: never a difference of large sums.
template <class P, ElementType kType>
DEVICE void tile_moments(const Rounded<P, kType>& z, const Extent& extent, Moments (&result)[2]) {
    float sum[2] = {}, m2[2] = {};
    bool in_columns[2] = {extent.has_column(0), extent.has_column(1)};
#pragma unroll
    for (int row = 0; row < P::kTileRows; ++row) {
        if (!extent.has_row(row)) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i / 2] += in_columns[i % 2] ? z[4 * row + i] : 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) result[half].mean = sum_of_four_lanes(sum[half]) / extent.count;
#pragma unroll
    for (int row = 0; row < P::kTileRows; ++row) {
        if (!extent.has_row(row)) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float deviation = in_columns[i % 2] ? z[4 * row + i] - result[i / 2].mean : 0.0f;
            m2[i / 2] += deviation * deviation;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) result[half].m2 = sum_of_four_lanes(m2[half]);
}

// Adds a tile's moments of 64 filters to the block's, which lie in shared memory; only one lane touches a filter's.
template <class P, ElementType kType>
DEVICE void count_tile(const Rounded<P, kType>& z, const Consumer& consumer, const Extent& extent, int first_filter) {
    Moments tile[2];
    tile_moments(z, extent, tile);
    int set = P::kWeightsInRegisters ? consumer.index : 0;
    if (lane_index() % 4) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        SmemAddress address = P::moments(set, first_filter + consumer.filter(half));
        Moments before = consumer.pixels ? load_shared<Moments>(address) : Moments{};
        store_shared(address, merged(before, consumer.pixels, tile[half], extent.count));
    }
}

// One row of partials a block: the sets of its consumers, merged in their order.
template <class P>
DEVICE void write_partials(const Arguments& arguments, const Consumer& consumer) {
    if (consumer.thread == 0 && (P::kMomentSets > 1 || consumer.index == 0))
        store_shared(P::count(consumer.index), static_cast<float>(consumer.pixels));
    named_barrier_sync(kAllConsumersBarrier, kConsumers * kWarpgroup);
    int thread = consumer.index * kWarpgroup + consumer.thread, row_size = 3 * P::kFilters;
    for (int filter = thread; filter < P::kFilters; filter += kConsumers * kWarpgroup) {
        Moments total = {};
        float count = 0;
#pragma unroll
        for (int set = 0; set < P::kMomentSets; ++set) {
            float more = load_shared<float>(P::count(set));
            if (more > 0) total = merged(total, count, load_shared<Moments>(P::moments(set, filter)), more);
            count += more;
        }
        float* row = arguments.partials + static_cast<int64_t>(block_index()) * row_size + filter;
        row[0] = count;
        row[P::kFilters] = total.mean;
        row[2 * P::kFilters] = total.m2;
    }
    for (int row = block_index() + block_count(); row < arguments.partial_rows; row += block_count())
        for (int i = thread; i < row_size; i += kConsumers * kWarpgroup)
            arguments.partials[static_cast<int64_t>(row) * row_size + i] = 0;
}

// ---- output ----

struct ScaleShift {
    float scale[2], shift[2];  // of the thread's two filters
};

DEVICE ScaleShift load_scale_shift(const Arguments& arguments, const Consumer& consumer, int first_filter) {
    ScaleShift result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int filter = first_filter + consumer.filter(half);
        result.scale[half] = arguments.scale ? arguments.scale[filter] : 1.0f;
        result.shift[half] = arguments.shift ? arguments.shift[filter] : 0.0f;
    }
    return result;
}

// One thread: makes the staging buffer of a consumer ready for `kStagedRows` rows of 64 filters, from stacked row `row`
// on: what it held has been stored, and the residual's rows, if any, are on their way.
template <class P, Epilogue kEpilogue>
DEVICE void open_staged(const TensorMap& residual, const Arguments& arguments, const Consumer& consumer,
                        const Tile& tile, int first_row, int first_filter) {
    tma_store_wait_read();
    if (!has_residual<kEpilogue>(arguments)) return;
    mbarrier_arrive_expect_tx(P::residual_full(consumer.index), P::kStagedBytes);
    OutputRows rows(arguments.problem, tile.row + first_row);
#pragma unroll 1
    for (int row = 0; row < P::kStagedRows; ++row) {
        MapRow from = rows.next();
        tma_load_4d(P::staged(consumer.index) + row * kStagedRowBytes, residual, P::residual_full(consumer.index),
                    first_filter, tile.column, from.row, from.image);
    }
}

// Where a lane's row of four 8x8 matrices lies: pixels (0, 0..7) and (1, 0..7) of the buffer, 16 filters of the warp.
// A row of the tile is 1024 bytes, the swizzle's period: those further down lie whole rows further on.
DEVICE SmemAddress staged_matrices(SmemAddress staged, int thread) {
    int matrix = lane_index() / 8, pixel = matrix / 2 * kTileColumns + lane_index() % 8;
    return chunk_address(staged, pixel, thread / 32 * 2 + matrix % 2);
}

// `lowest` is what a ReLU lets through at the least, zero or minus infinity; NaN comes out as NaN.
template <ElementType kType>
DEVICE uint32_t scale_shift_act(float low, float high, uint32_t residual, float scale, float shift, float lowest) {
    low = fmaf(low, scale, shift) + widen<kType>(static_cast<uint16_t>(residual));
    high = fmaf(high, scale, shift) + widen<kType>(static_cast<uint16_t>(residual >> 16));
    return pack<kType>(low < lowest ? lowest : low, high < lowest ? lowest : high);
}

template <class P>
DEVICE void store_staged(const TensorMap& output, const Problem& problem, const Consumer& consumer, const Tile& tile,
                         int first_row, int first_filter) {
    OutputRows rows(problem, tile.row + first_row);
#pragma unroll 1
    for (int row = 0; row < P::kStagedRows; ++row) {
        MapRow to = rows.next();
        tma_store_4d(output, P::staged(consumer.index) + row * kStagedRowBytes, first_filter, tile.column, to.row,
                     to.image);
    }
    tma_store_commit();
}

// 64 filters of the tile to global memory, `kStagedRows` rows at a time, transposed to pixels of 64 filters on the way.
// The buffer was opened for the first of them. finish_pair(i, residual) is the word of registers 2 * i and 2 * i + 1.
template <class P, Epilogue kEpilogue, class FinishPair>
DEVICE void store_tile(const TensorMap& output, const TensorMap& residual, const Arguments& arguments,
                       Consumer& consumer, const Tile& tile, int first_filter, const FinishPair& finish_pair) {
    SmemAddress matrices = staged_matrices(P::staged(consumer.index), consumer.thread);
#pragma unroll
    for (int first_row = 0; first_row < P::kTileRows; first_row += P::kStagedRows) {
        if (first_row > 0 && consumer.thread == 0)
            open_staged<P, kEpilogue>(residual, arguments, consumer, tile, first_row, first_filter);
        if (has_residual<kEpilogue>(arguments))
            mbarrier_wait(P::residual_full(consumer.index), consumer.residual_uses++ % 2);
        else
            consumer.sync();
#pragma unroll
        for (int row = 0; row < P::kStagedRows; row += 2) {
            uint32_t r[4] = {};
            if (has_residual<kEpilogue>(arguments)) load_matrix_x4_trans(matrices + row * kStagedRowBytes, r);
#pragma unroll
            for (int i = 0; i < 4; ++i) r[i] = finish_pair(2 * (first_row + row) + i, r[i]);
            store_matrix_x4_trans(matrices + row * kStagedRowBytes, r[0], r[1], r[2], r[3]);
        }
        fence_proxy_async();
        consumer.sync();
        if (consumer.thread == 0) store_staged<P>(output, arguments.problem, consumer, tile, first_row, first_filter);
    }
}

}  // namespace conv3x3_halo
