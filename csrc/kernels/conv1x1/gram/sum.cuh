// conv1x1_gram: S and G from the rows of partials, in the order of the rows; what lies below the diagonal of G's blocks
// is mirrored.
#pragma once
#include "kernels/conv1x1/gram/plan.cuh"

namespace conv1x1_gram {

struct SumGram {
    const float* partials;  // (rows, C + 1, C)
    float* total;           // (C,)
    float* gram;            // (C, C)
    int rows, channels;
    int block;  // channels of a block of G, a multiple of kSumColumns

    HOST_DEVICE int groups() const { return (channels + kSumColumns - 1) / kSumColumns; }
    HOST_DEVICE int blocks() const { return (channels + 1) * groups(); }
};

__global__ void __launch_bounds__(kSumThreads) sum_gram_kernel(const __grid_constant__ SumGram p) {
    int i = block_index() / p.groups(), first_column = block_index() % p.groups() * kSumColumns;
    bool is_total = i == p.channels;
    int blocks_right = first_column / p.block - i / p.block;  // of the diagonal
    if (!is_total && blocks_right < 0) return;
    int j = first_column + thread_index() % kSumChunks * kChunkChannels, lane = thread_index() / kSumChunks;
    Floats8 own = {};
#pragma unroll 4
    for (int row = lane; j < p.channels && row < p.rows; row += kSumLanes)
        add(own, load_floats8(p.partials + (row * (int64_t{p.channels} + 1) + i) * p.channels + j));
    Floats8 sum = RowSums{smem_base(), 0}.total(own, thread_index());
    if (j >= p.channels) return;
    if (lane == 0) store_floats8(is_total ? p.total + j : p.gram + int64_t{i} * p.channels + j, sum);
    if (is_total || blocks_right == 0) return;
#pragma unroll
    for (int k = 0; k < kChunkChannels; ++k)
        if (lane == k) p.gram[int64_t{j + k} * p.channels + i] = sum.value[k];
}

}  // namespace conv1x1_gram
