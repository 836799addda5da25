// conv3x3_halo_wgrad: the gradient of a 3x3 convolution's weight, padding 1, stride 1 or 2, C -> K channels (multiples
// of 64), NHWC float16 or bfloat16, for sm_90a.
//
//     dz = a * g + b * z + c                       rounded; the backward of the convolution's own batch norm
//     dW[k][r][s][c] = sum over pixels of dz * prologue(x) at tap (r, s), float32
//     prologue    nothing, or relu(x * in_scale + in_shift) rounded to x's type; the padding is zero after it
//
// The pixels are the k of wgmma: operand A is a tile of dz and B the halo of x, both as they lie in memory, channels
// contiguous. Nine shifted views of one halo are the nine taps. Warpgroup 0 loads both and makes dz and the activations
// of them in place; warpgroup 1 + r multiplies tap row r. Blocks share the pixels (plan.cuh) and leave a row of
// partials each, to be summed in their order.
//
// A pixel of dz that does not exist is a zero, which a halo's neighbouring NaN or infinity turns into NaN: such an x
// may reach taps of its channel that a convolution by definition would not let it meet.
#pragma once
#include "kernels/conv3x3/forward/multiply.cuh"
#include "kernels/conv3x3/wgrad/plan.cuh"

namespace conv3x3_halo_wgrad {

using conv3x3_halo_dgrad::bn_backward;
using conv3x3_halo_dgrad::Coefficients;
using conv3x3_halo_dgrad::load_coefficients;

// ---- load ----

template <class P>
DEVICE void load_gradient(const WgradParameters& parameters, const Tile& tile, int first_filter, int slot) {
    const WgradArguments& arguments = parameters.arguments;
    bool has_z = arguments.norm.b != nullptr;
    mbarrier_arrive_expect_tx(P::gradient_full(slot), (1 + has_z) * P::kGradientBytes);
    OutputRows rows(arguments.problem, tile.row);
#pragma unroll 1
    for (int row = 0; row < P::kTileRows; ++row) {
        MapRow from = rows.next();
        tma_load_4d(P::gradient(slot) + row * P::kGroup, parameters.g, P::gradient_full(slot), first_filter,
                    tile.column, from.row, from.image);
        if (has_z)
            tma_load_4d(P::z(slot) + row * P::kGroup, parameters.z, P::gradient_full(slot), first_filter, tile.column,
                        from.row, from.image);
    }
}

template <class P>
DEVICE void load_operands(const WgradParameters& parameters, const Share& share) {
    const WgradArguments& arguments = parameters.arguments;
    int use = 0;
    for (int index = share.split; index < P::tile_count(arguments.problem); index += arguments.splits, ++use) {
        Turn at = turn<P::kSlots>(use);
        Tile tile = tile_at<P>(arguments.problem, index);
        mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);
        if (lane_index() == 0) load_gradient<P>(parameters, tile, share.filter_slice * kSliceChannels, at.slot);
        load_slice<P>(parameters.x, arguments.problem, tile, share.channel_slice, at.slot);
    }
}

// ---- prologues ----

// The rows of a tile that exist, a bit each.
template <class P>
DEVICE uint32_t output_rows(const Problem& problem, const Tile& tile) {
    int stacked = tile.row + lane_index(), image = problem.image_pitch.quotient(stacked);
    int row = stacked - image * static_cast<int>(problem.image_pitch.divisor);
    return warp_ballot(row < problem.out_height && image < problem.images);
}

// Pixels that do not exist are told by their place: what TMA filled them with would come out as c.
template <class P, ElementType kType>
DEVICE void make_output_gradient(const WgradArguments& arguments, const Tile& tile, int first_filter, int slot,
                                 int thread) {
    uint32_t rows = output_rows<P>(arguments.problem, tile);
    int chunk = thread % kPixelChunks, columns = arguments.problem.out_width - tile.column;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        Coefficients k = load_coefficients(arguments.norm, first_filter + chunk * kChunkChannels + 4 * half);
#pragma unroll 2
        for (int pixel = thread / kPixelChunks; pixel < P::kTilePixels;
             pixel += Normalizers<P>::kThreads / kPixelChunks) {
            SmemAddress at = chunk_address(P::gradient(slot), pixel, chunk) + 8 * half;
            HalfChunk z = {};
            if (arguments.norm.b) z = load_shared<HalfChunk>(chunk_address(P::z(slot), pixel, chunk) + 8 * half);
            HalfChunk dz = bn_backward<kType>(load_shared<HalfChunk>(at), z, k);
            bool exists = (rows >> pixel / kTileColumns & 1) && pixel % kTileColumns < columns;
            store_shared(at, exists ? dz : HalfChunk{});
        }
    }
}

// The activations of x, in its place.
template <class P, ElementType kType>
DEVICE void make_activations(const WgradArguments& arguments, const Tile& tile, int first_channel, int slot,
                             int thread) {
    int chunk = thread % kPixelChunks, channel = first_channel + chunk * kChunkChannels;
    Inside in_image = inside<P>(arguments.problem, tile);
    if (load_shared<uint32_t>(P::norm_wide(chunk)))
        normalize_wide<P, kType>(P::slice(slot), arguments.in_scale + channel, arguments.in_shift + channel, in_image,
                                 thread);
    else
        normalize_packed<P, kType>(P::slice(slot), load_shared<Chunk>(P::norm_scale(chunk)),
                                   load_shared<Chunk>(P::norm_shift(chunk)), thread);
}

template <class P, ElementType kType>
DEVICE void make_operands(const WgradArguments& arguments, const Share& share) {
    int thread = thread_index() - 32 * Normalizers<P>::kFirstWarp, use = 0;
    for (int index = share.split; index < P::tile_count(arguments.problem); index += arguments.splits, ++use) {
        Turn at = turn<P::kSlots>(use);
        Tile tile = tile_at<P>(arguments.problem, index);
        mbarrier_wait(P::gradient_full(at.slot), at.parity);
        make_output_gradient<P, kType>(arguments, tile, share.filter_slice * kSliceChannels, at.slot, thread);
        mbarrier_wait(P::halo_full(at.slot), at.parity);
        if (arguments.in_scale)
            make_activations<P, kType>(arguments, tile, share.channel_slice * kSliceChannels, at.slot, thread);
        fence_proxy_async();
        mbarrier_arrive(P::halo_normalized(at.slot));
    }
}

// ---- multiply ----

// One tile, for the taps of one row. The views of x start anywhere in the swizzle's pattern, as conv3x3_halo's do, here
// with the channels contiguous along N: csrc/micro/wgmma_shifted_mn_major.cu asks a GPU.
template <class P, ElementType kType>
DEVICE void multiply_tile(float (&d)[kTapsOfRow][kProducts], int tap_row, int slot, bool first_tile) {
    uint64_t gradient = matrix_descriptor(P::gradient(slot), 16, P::kGroup, Swizzle::k128B);
    uint64_t pixels = pixel_matrix<P>(slot);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < P::kTileRows / 2; ++step)  // two rows of the tile are the 16 pixels of a wgmma
#pragma unroll
        for (int column = 0; column < kTapsOfRow; ++column)
            wgmma_ss<kType, kSliceChannels, Major::kMN, Major::kMN>(
                d[column], advanced(gradient, step * 2 * P::kGroup),
                advanced(pixels, P::tap_offset(column) + tap_row * P::kRowBytes + step * 2 * P::kGroupBytes),
                !first_tile || step > 0);
    wgmma_commit();
}

struct alignas(8) FloatPair {
    float low, high;
};

// This block's filters and channels of its split's row of partials.
DEVICE void write_products(const float (&d)[kTapsOfRow][kProducts], const WgradArguments& arguments, const Share& share,
                           int tap_row, int thread) {
    int filter = share.filter_slice * kFilterTile + thread / 32 * 16 + lane_index() / 4;
    int channel = share.channel_slice * kSliceChannels + lane_index() % 4 * 2;
    int64_t row = static_cast<int64_t>(share.split) * arguments.filters;
#pragma unroll
    for (int column = 0; column < kTapsOfRow; ++column)
#pragma unroll
        for (int i = 0; i < kProducts; i += 2) {
            int64_t at = (row + filter + i / 2 % 2 * 8) * kTaps + tap_row * kTapsOfRow + column;
            *reinterpret_cast<FloatPair*>(arguments.partials + at * arguments.channels + channel + i / 4 * 8) =
                FloatPair{d[column][i], d[column][i + 1]};
        }
}

template <class P, ElementType kType>
DEVICE void consume_tiles_of_row(const WgradArguments& arguments, const Share& share, int tap_row) {
    float d[kTapsOfRow][kProducts];
    int use = 0;
    if (share.split >= P::tile_count(arguments.problem))
        return write_products({}, arguments, share, tap_row, thread_index() % kWarpgroup);
#pragma unroll 1
    for (int index = share.split; index < P::tile_count(arguments.problem); index += arguments.splits, ++use) {
        Turn at = turn<P::kSlots>(use);
        if (!arguments.in_scale) mbarrier_wait(P::halo_full(at.slot), at.parity);
        mbarrier_wait(P::halo_normalized(at.slot), at.parity);
        multiply_tile<P, kType>(d, tap_row, at.slot, use == 0);
        wgmma_wait<1>();  // all but the tile just issued
        if (use > 0) release(P::halo_empty(turn<P::kSlots>(use - 1).slot));
    }
    wgmma_wait<0>();
    write_products(d, arguments, share, tap_row, thread_index() % kWarpgroup);
}

// ---- kernel ----

template <class P, ElementType kType>
DEVICE void prepare_operands(const WgradArguments& arguments, const Share& share) {
    if (thread_index() == 0) {
        for (int slot = 0; slot < P::kSlots; ++slot) {
            mbarrier_init(P::gradient_full(slot), 1);
            mbarrier_init(P::halo_full(slot), 1);
            mbarrier_init(P::halo_normalized(slot), Normalizers<P>::kThreads);
            mbarrier_init(P::halo_empty(slot), kRows * kConsumerWarps);
        }
        mbarrier_init_fence();
    }
    int first_channel = share.channel_slice * kSliceChannels;
    if (arguments.in_scale)
        prepare_norm<P, kType>(arguments.in_scale + first_channel, arguments.in_shift + first_channel,
                               arguments.packed_limit, thread_index());
    cta_sync();
}

template <ElementType kType, int kStride>
__global__ void __launch_bounds__(kWgradThreads, 1)
    conv3x3_halo_wgrad_kernel(const __grid_constant__ WgradParameters parameters) {
    using P = WgradPlan<kStride>;
    const WgradArguments& arguments = parameters.arguments;
    Share share = share_of(arguments);
    prepare_operands<P, kType>(arguments, share);
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<kProducerRegisters>();
        if (warp_uniform(thread_index() / 32) == kHaloWarp)
            load_operands<P>(parameters, share);
        else
            make_operands<P, kType>(arguments, share);
    } else {
        register_budget_increase<kConsumerRegisters>();
        consume_tiles_of_row<P, kType>(arguments, share, warpgroup - 1);
    }
}

}  // namespace conv3x3_halo_wgrad
