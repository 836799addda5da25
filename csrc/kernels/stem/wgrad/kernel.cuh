// stem_wgrad: the gradient of the stem's weight, NHWC float16 or bfloat16, for sm_90a.
//
//     dz = a * g + b * z + c                       rounded; the backward of the convolution's own batch norm
//     dW[k][r][s][c] = sum over outputs of dz * images at tap (r, s), float32
//
// The outputs are the k of mma.m16n8k16, 16 of a row of the tile at a time: dz^T, 64 filters, is operand A and one row
// of the filter, 8 taps of 4 channels, operand B, both through ldmatrix, transposed, from where outputs and pixels lie
// (kernels/stem/image.cuh). One thread brings g and z, four warps make dz of them in place and bring the halo, and
// seven warps multiply, each a row of the filter. Blocks leave a row of partials each, to be summed in their order;
// what belongs to the eighth tap and to the fourth channel is not among it.
//
// An output that does not exist is a zero in dz, which a neighbouring NaN or infinity of the images turns into NaN:
// such a pixel may reach taps that a convolution by definition would not let it meet.
#pragma once
#include "kernels/stem/wgrad/plan.cuh"

namespace stem_wgrad {

// ---- load ----

DEVICE void load_gradients(const Parameters& parameters) {
    bool has_z = parameters.norm.b != nullptr;
    int use = 0;
    for (int tile = block_index(); tile < parameters.tiles.count(); tile += block_count(), ++use) {
        Turn at = turn<Plan::kSlots>(use);
        Box box = parameters.tiles.first(tile);
        mbarrier_wait(Plan::empty(at.slot), at.parity ^ 1);
        mbarrier_arrive_expect_tx(Plan::loaded(at.slot), (1 + has_z) * kSliceBytes);
        tma_load_4d(Plan::gradient(at.slot), parameters.g, Plan::loaded(at.slot), 0, box.column, box.row, box.image);
        if (has_z)
            tma_load_4d(Plan::z(at.slot), parameters.z, Plan::loaded(at.slot), 0, box.column, box.row, box.image);
    }
}

// ---- prologue ----

struct Coefficients {  // of eight filters
    Floats2 a[4], b[4], c[4];
};

DEVICE Coefficients load_coefficients(const BnBackward& norm, int filter) {
    Coefficients k = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        k.a[i] = load_pair(norm.a + filter + 2 * i);
        if (norm.b) {
            k.b[i] = load_pair(norm.b + filter + 2 * i);
            k.c[i] = load_pair(norm.c + filter + 2 * i);
        }
    }
    return k;
}

// Outputs that do not exist are told by their place: what TMA filled them with would come out as c.
template <ElementType kType>
DEVICE void make_output_gradient(const Parameters& parameters, const Coefficients& k, const Box& box, int slot,
                                 int thread) {
    constexpr int kChunks = kFilters / kChunkChannels;  // of an output
#pragma unroll 2
    for (int pixel = thread / kChunks; pixel < kTilePixels; pixel += kLoaders / kChunks) {
        SmemAddress at = chunk_address(Plan::gradient(slot), pixel, thread % kChunks);
        Chunk dz = load_shared<Chunk>(at), z = {};
        if (parameters.norm.b) z = load_shared<Chunk>(at + kSliceBytes);
        bool exists = parameters.tiles.inside(box, pixel);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            dz.word[i] = exists ? kernels::bn_backward<kType>(dz.word[i], z.word[i], k.a[i], k.b[i], k.c[i]) : 0;
        store_shared(at, dz);
    }
}

template <ElementType kType>
DEVICE void make_operands(const Parameters& parameters) {
    const Tiles& tiles = parameters.tiles;
    int thread = thread_index();
    Coefficients k = load_coefficients(parameters.norm, thread % (kFilters / kChunkChannels) * kChunkChannels);
    for_each_halo(parameters.images, tiles, thread, [&](int tile, int use, const HaloPart& part) {
        Turn at = turn<Plan::kSlots>(use);
        mbarrier_wait(Plan::loaded(at.slot), at.parity);
        make_output_gradient<kType>(parameters, k, tiles.first(tile), at.slot, thread);
        store_halo(Plan::halo(at.slot), part, thread);
        // TMA writes there again
        fence_proxy_async();
        mbarrier_arrive(Plan::full(at.slot));
    });
}

// ---- multiply ----

constexpr int kFilterBlocks = kFilters / 16;  // of M = 16
constexpr int kTapPairs = kTaps / 2;          // of N = 8

struct Products {
    float value[kFilterBlocks][kTapPairs][4];
};

// One row of the tile: 16 outputs. Lane 8 * i + r gives row r of matrix i: of operand A the filters go first, of B the
// outputs.
template <ElementType kType>
DEVICE void multiply_row(Products& d, int slot, int row, int filter_row) {
    int lane = lane_index(), r = lane % 8, low = lane / 8 % 2, high = lane / 16;
    uint32_t taps[kTapPairs / 2][4];
#pragma unroll
    for (int i = 0; i < kTapPairs / 2; ++i)
        load_matrix_x4_trans(tap_pair(Plan::halo(slot), row, 8 * low + r, filter_row, 2 * i + high), taps[i]);
#pragma unroll
    for (int block = 0; block < kFilterBlocks; ++block) {
        uint32_t gradient[4];
        int pixel = row * kTileColumns + 8 * high + r;
        load_matrix_x4_trans(chunk_address(Plan::gradient(slot), pixel, 2 * block + low), gradient);
#pragma unroll
        for (int pair = 0; pair < kTapPairs; ++pair) {
            const uint32_t* two = &taps[pair / 2][pair % 2 * 2];
            mma_m16n8k16<kType>(d.value[block][pair], gradient, {two[0], two[1]});
        }
    }
}

DEVICE void write_products(const Products& d, float* partials, int filter_row) {
    float* row = partials + block_index() * (kFilters * kFilterSize * kFilterSize * kChannels);
#pragma unroll
    for (int block = 0; block < kFilterBlocks; ++block)
#pragma unroll
        for (int pair = 0; pair < kTapPairs; ++pair)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int filter = 16 * block + lane_index() / 4 + i / 2 * 8, column = lane_index() % 4 * 2 + i % 2;
                int tap = 2 * pair + column / kPaddedChannels, channel = column % kPaddedChannels;
                if (tap == kFilterSize || channel == kChannels) continue;
                int at = ((filter * kFilterSize + filter_row) * kFilterSize + tap) * kChannels + channel;
                row[at] = d.value[block][pair][i];
            }
}

template <ElementType kType>
DEVICE void multiply(const Parameters& parameters, int filter_row) {
    Products d = {};
    int use = 0;
#pragma unroll 1
    for (int tile = block_index(); tile < parameters.tiles.count(); tile += block_count(), ++use) {
        Turn at = turn<Plan::kSlots>(use);
        mbarrier_wait(Plan::full(at.slot), at.parity);
#pragma unroll 2
        for (int row = 0; row < kTileRows; ++row) multiply_row<kType>(d, at.slot, row, filter_row);
        fence_proxy_async();  // read by these threads, written by TMA next
        warp_sync();
        release(Plan::empty(at.slot));
    }
    write_products(d, parameters.partials, filter_row);
}

// ---- kernel ----

DEVICE void prepare() {
    if (thread_index() == 0) {
        for (int slot = 0; slot < Plan::kSlots; ++slot) {
            mbarrier_init(Plan::loaded(slot), 1);
            mbarrier_init(Plan::full(slot), kLoaders);
            mbarrier_init(Plan::empty(slot), kMultiplierWarps);
        }
        mbarrier_init_fence();
    }
    cta_sync();
}

template <ElementType kType>
__global__ void __launch_bounds__(kThreads, 1) stem_wgrad_kernel(const __grid_constant__ Parameters parameters) {
    prepare();
    int warp = warp_uniform(thread_index() / 32);
    if (warp < kTmaWarp)
        make_operands<kType>(parameters);
    else if (warp >= kFirstMultiplierWarp)
        multiply<kType>(parameters, warp - kFirstMultiplierWarp);
    else if (lane_index() == 0)
        load_gradients(parameters);
}

}  // namespace stem_wgrad
