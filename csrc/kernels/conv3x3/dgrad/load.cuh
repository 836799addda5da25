// conv3x3_halo_dgrad, warpgroup 0: brings halo slices of g and z into shared memory, makes dz of them in g's place, and
// streams the weights.
#pragma once
#include "kernels/conv3x3/dgrad/plan.cuh"
#include "kernels/conv3x3/dgrad/prologue.cuh"
#include "kernels/conv3x3/forward/epilogue.cuh"

namespace conv3x3_halo_dgrad {

struct DgradArguments {
    Arguments tiles;    // of dz; its residual is below_z
    int height, width;  // of dx
    BnBackward norm;
    const float *below_scale, *below_shift;      // (C,) or null: no mask by them
    const float* below_mean;                     // (C,), where there is a below_z
    bool has_skip, has_skip_out, has_below_out;  // with a block below; at stride 2 the skip is phase 0's alone
    float* partials;                             // (partial_rows, 2, C), or null
    int partial_rows;  // at least as many as blocks, which leave zeros in those that they do not need
};

struct DgradParameters {
    TensorMap g, z, weights, skip, skip_out;
    TensorMap dx[kMaxPhases], below_z[kMaxPhases], below_out[kMaxPhases];
    DgradArguments arguments;
};

template <class P>
DEVICE Extents extents_of(const DgradArguments& arguments, int phase) {
    return phase_extents(arguments.height, arguments.width, P::kPhases, phase);
}

// ---- load ----

template <class P>
DEVICE void load_gradient_slice(const DgradParameters& parameters, const Tile& tile, int slice, int use) {
    bool has_z = parameters.arguments.norm.b != nullptr;
    Turn at = turn<P::kSlots>(use), z_at = turn<P::kZSlots>(use);
    mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);
    if (has_z) mbarrier_wait(P::z_empty(z_at.slot), z_at.parity ^ 1);
    if (lane_index() == 0) mbarrier_arrive_expect_tx(P::halo_full(at.slot), (1 + has_z) * P::kSliceBytes);
    warp_sync();
    for (int row = lane_index(); row < P::kHaloRows; row += 32) {
        MapRow from = halo_row<P>(parameters.arguments.tiles.problem, tile, row);
        int first = slice * kSliceChannels, column = tile.column - 1;
        tma_load_4d(P::slice(at.slot) + row * P::kRowBytes, parameters.g, P::halo_full(at.slot), first, column,
                    from.row, from.image);
        if (has_z)
            tma_load_4d(P::z_slice(z_at.slot) + row * P::kRowBytes, parameters.z, P::halo_full(at.slot), first, column,
                        from.row, from.image);
    }
}

template <class P>
DEVICE void load_gradients(const DgradParameters& parameters) {
    const Problem& problem = parameters.arguments.tiles.problem;
    int use = 0;
    for (int index = block_index(); index < P::tile_count(problem); index += block_count()) {
        Tile tile = tile_at<P>(problem, index);
        for (int slice = 0; slice < P::kSlices; ++slice, ++use) load_gradient_slice<P>(parameters, tile, slice, use);
    }
}

// One phase's weights, in the order in which the consumers multiply by them.
template <class P>
DEVICE void stream_phase(const TensorMap& weights, int phase, int& use) {
    for (int slice = 0; slice < P::kSlices; ++slice)
        for (int i = 0; i < P::tap_count(phase); ++i)
            for (int filters = 0; filters < P::kFilterTiles; ++filters, ++use) {
                Turn at = turn<P::kStages>(use);
                mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);
                mbarrier_arrive_expect_tx(P::weights_full(at.slot), P::kStageBytes);
                tma_load_4d(P::weights(at.slot), weights, P::weights_full(at.slot), slice * kSliceChannels,
                            P::tap(phase, i), filters * P::kFilterConsumers * kFilterTile, 0);
            }
}

template <class P>
DEVICE void stream_phases(const DgradParameters& parameters) {
    const DgradArguments& arguments = parameters.arguments;
    int use = 0;
    for (int index = block_index(); index < P::tile_count(arguments.tiles.problem); index += block_count())
        for (int phase = 0; phase < P::kPhases; ++phase)
            if (!extents_of<P>(arguments, phase).empty()) stream_phase<P>(parameters.weights, phase, use);
}

// ---- prologue ----

// Padding is told by its place: what TMA filled it with would come out as c.
template <class P, ElementType kType>
DEVICE void make_dz(const DgradArguments& arguments, const Inside& inside, int slice, int use, int thread) {
    SmemAddress g = P::slice(use % P::kSlots), z = P::z_slice(use % P::kZSlots);
    int chunk = thread % kPixelChunks;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        Coefficients k = load_coefficients(arguments.norm, slice * kSliceChannels + chunk * kChunkChannels + 4 * half);
#pragma unroll 2
        for (int pixel = thread / kPixelChunks; pixel < P::kHaloPixels;
             pixel += Normalizers<P>::kThreads / kPixelChunks) {
            SmemAddress at = chunk_address(g, pixel, chunk) + 8 * half;
            HalfChunk z_values = {};
            if (arguments.norm.b) z_values = load_shared<HalfChunk>(chunk_address(z, pixel, chunk) + 8 * half);
            HalfChunk dz = bn_backward<kType>(load_shared<HalfChunk>(at), z_values, k);
            store_shared(at, inside.has<P>(pixel) ? dz : HalfChunk{});
        }
    }
}

template <class P, ElementType kType>
DEVICE void make_gradients(const DgradArguments& arguments) {
    const Problem& problem = arguments.tiles.problem;
    int thread = thread_index() - 32 * Normalizers<P>::kFirstWarp, use = 0;
    for (int index = block_index(); index < P::tile_count(problem); index += block_count()) {
        Inside in_map = inside<P>(problem, tile_at<P>(problem, index));
        for (int slice = 0; slice < P::kSlices; ++slice, ++use) {
            Turn at = turn<P::kSlots>(use);
            mbarrier_wait(P::halo_full(at.slot), at.parity);
            make_dz<P, kType>(arguments, in_map, slice, use, thread);
            fence_proxy_async();
            mbarrier_arrive(P::halo_normalized(at.slot));
            mbarrier_arrive(P::z_empty(use % P::kZSlots));
        }
    }
}

}  // namespace conv3x3_halo_dgrad
