// conv3x3_halo, warpgroup 0: brings halo slices and weights into shared memory and applies the prologue there.
#pragma once
#include "device/gemm.cuh"
#include "kernels/conv3x3/forward/plan.cuh"

namespace conv3x3_halo {

constexpr int kHaloWarp = 0, kWeightsWarp = 1;

// Warps of warpgroup 0 that apply the prologue: the one that loads weights helps where it has nothing to load.
template <class P>
struct Normalizers {
    static constexpr int kFirstWarp = P::kWeightsInRegisters ? 1 : 2;
    static constexpr int kThreads = kWarpgroup - 32 * kFirstWarp;
};

// ---- load ----

template <class P>
DEVICE void load_slice(const TensorMap& input, const Problem& problem, const Tile& tile, int slice, int slot) {
    int column = P::kStride * tile.column - 1;
    if (lane_index() == 0) mbarrier_arrive_expect_tx(P::halo_full(slot), P::kSliceBytes);
    warp_sync();
    for (int row = lane_index(); row < P::kHaloRows; row += 32) {
        MapRow from = halo_row<P>(problem, tile, row);
        SmemAddress to = P::slice(slot) + row * P::kRowBytes;
#pragma unroll
        for (int phase = 0; phase < P::kStride; ++phase)
            tma_load_4d(to + phase * P::kLoadPixels * kPixelBytes, input, P::halo_full(slot), slice * kSliceChannels,
                        column + phase, from.row, from.image);
    }
}

template <class P>
DEVICE void load_halos(const TensorMap& input, const Problem& problem) {
    int use = 0;
    for (int index = block_index(); index < P::tile_count(problem); index += block_count()) {
        Tile tile = tile_at<P>(problem, index);
        for (int slice = 0; slice < P::kSlices; ++slice, ++use) {
            Turn at = turn<P::kSlots>(use);
            mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);
            load_slice<P>(input, problem, tile, slice, at.slot);
        }
    }
}

// Every filter once: the last tap stays, the others pass through the halo slots before these have another use.
template <class P>
DEVICE void load_filters(const TensorMap& weights) {
    if (lane_index() == 0) {
        mbarrier_arrive_expect_tx(P::filters_full(), kTaps * kFilterBytes);
        for (int tap = 0; tap < kTaps; ++tap) {
            SmemAddress to = tap == kLastTap ? P::weights(0) : P::slice(0) + tap * kFilterBytes;
            tma_load_4d(to, weights, P::filters_full(), 0, tap, 0, 0);
        }
    }
    mbarrier_wait(P::filters_taken(), 0);
}

// The weights in the order in which the consumers multiply by them, over and over.
template <class P>
DEVICE void stream_weights(const TensorMap& weights, const Problem& problem) {
    int use = 0;
    for (int index = block_index(); index < P::tile_count(problem); index += block_count())
        for (int pass = 0; pass < P::kPasses; ++pass)
            for (int slice = 0; slice < P::kSlices; ++slice)
                for (int tap = 0; tap < kTaps; ++tap)
                    for (int tile = 0; tile < P::kFilterTiles; ++tile, ++use) {
                        Turn at = turn<P::kStages>(use);
                        int filter = pass * P::kFiltersAtOnce + tile * kConsumers * kFilterTile;
                        mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);
                        mbarrier_arrive_expect_tx(P::weights_full(at.slot), P::kStageBytes);
                        tma_load_4d(P::weights(at.slot), weights, P::weights_full(at.slot), slice * kSliceChannels, tap,
                                    filter, 0);
                    }
}

// ---- prologue: relu(x * scale + shift), rounded to x's type; padding stays zero ----

// Whether the packed form may stand for the float32 one: its scale and shift are of x's own 16-bit type. A shift that
// is large against what the scale makes of x's deviations loses there what cancels against scale * mean; only the
// caller knows x's deviations, and says with `limit` how large |shift / scale|, in units of x, may be.
template <ElementType kType>
DEVICE bool fits_packed(float scale, float shift, float limit) {
    constexpr float kSmallest = kType == ElementType::kF16 ? 6.1035156e-5f : 1.1754944e-38f;  // normal numbers
    constexpr float kLargest = kType == ElementType::kF16 ? 65504.0f : 3.3e38f;
    float scale_size = fabsf(scale), shift_size = fabsf(shift);
    return limit > 0.0f && scale_size >= kSmallest && scale_size <= kLargest && shift_size <= kLargest &&
           shift_size <= limit * scale_size;
}

// Scale and shift of all channels as the packed instruction wants them, and the chunks of eight that it does not fit.
template <class P, ElementType kType>
DEVICE void prepare_norm(const float* in_scale, const float* in_shift, float packed_limit, int thread) {
    for (int chunk = thread; chunk < P::kChannels / kChunkChannels; chunk += kThreads) {
        Floats8 scale = load_floats8(in_scale + chunk * kChunkChannels);
        Floats8 shift = load_floats8(in_shift + chunk * kChunkChannels);
        uint32_t wide = 0;
#pragma unroll
        for (int i = 0; i < kChunkChannels; ++i)
            wide |= !fits_packed<kType>(scale.value[i], shift.value[i], packed_limit);
        store_shared(P::norm_scale(chunk), narrow<kType>(scale));
        store_shared(P::norm_shift(chunk), narrow<kType>(shift));
        store_shared(P::norm_wide(chunk), wide);
    }
}

struct alignas(8) HalfChunk {  // four channels
    uint32_t word[2];
};

DEVICE SmemAddress chunk_address(SmemAddress pixels, int pixel, int chunk) {
    return swizzled(Swizzle::k128B, pixels + pixel * kPixelBytes + chunk * 16);
}

// One instruction for two channels; it turns the OOB NaN that TMA filled the padding with into zero.
template <class P, ElementType kType>
DEVICE void normalize_packed(SmemAddress pixels, const Chunk& scale, const Chunk& shift, int thread) {
    int chunk = thread % kPixelChunks;
#pragma unroll 2
    for (int pixel = thread / kPixelChunks; pixel < P::kHaloPixels; pixel += Normalizers<P>::kThreads / kPixelChunks) {
        SmemAddress address = chunk_address(pixels, pixel, chunk);
        Chunk value = load_shared<Chunk>(address);
#pragma unroll
        for (int i = 0; i < 4; ++i) value.word[i] = fma_relu_oob<kType>(value.word[i], scale.word[i], shift.word[i]);
        store_shared(address, value);
    }
}

// Which pixels of a tile's halo lie in the image; the others are padding.
struct Inside {
    uint64_t rows;  // bit r: row r
    int first_column, width;

    template <class P>
    DEVICE bool has(int pixel) const {
        int row = pixel / P::kRowPixels, place = pixel % P::kRowPixels;
        int column = first_column + (P::kStride == 1 ? place : place % P::kLoadPixels * 2 + place / P::kLoadPixels);
        return (rows >> row & 1) && static_cast<uint32_t>(column) < static_cast<uint32_t>(width);
    }
};

// Lane r looks at rows r and r + 32.
template <class P>
DEVICE Inside inside(const Problem& problem, const Tile& tile) {
    static_assert(P::kHaloRows <= 64);
    uint32_t rows[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        MapRow at = halo_row<P>(problem, tile, 32 * half + lane_index());
        rows[half] = warp_ballot(at.row >= 0 && at.row < problem.height && at.image < problem.images);
    }
    return {uint64_t{rows[1]} << 32 | rows[0], P::kStride * tile.column - 1, problem.width};
}

// In float32, four channels at a time. Padding is told by its place, not by its value: a NaN of the data with the bits
// of TMA's OOB NaN stays a NaN.
template <class P, ElementType kType>
DEVICE void normalize_wide(SmemAddress pixels, const float* in_scale, const float* in_shift, const Inside& inside,
                           int thread) {
    int chunk = thread % kPixelChunks;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        Floats4 scale = load_global(in_scale + 4 * half), shift = load_global(in_shift + 4 * half);
#pragma unroll 2
        for (int pixel = thread / kPixelChunks; pixel < P::kHaloPixels;
             pixel += Normalizers<P>::kThreads / kPixelChunks) {
            SmemAddress address = chunk_address(pixels, pixel, chunk) + 8 * half;
            HalfChunk value = load_shared<HalfChunk>(address);
            bool exists = inside.has<P>(pixel);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float low =
                    fmaf(widen<kType>(static_cast<uint16_t>(value.word[i])), scale.value[2 * i], shift.value[2 * i]);
                float high = fmaf(widen<kType>(static_cast<uint16_t>(value.word[i] >> 16)), scale.value[2 * i + 1],
                                  shift.value[2 * i + 1]);
                value.word[i] = exists ? pack<kType>(relu(low), relu(high)) : 0;
            }
            store_shared(address, value);
        }
    }
}

template <class P, ElementType kType>
DEVICE void normalize_halos(const float* in_scale, const float* in_shift, const Problem& problem) {
    int thread = thread_index() - 32 * Normalizers<P>::kFirstWarp, use = 0;
    for (int index = block_index(); index < P::tile_count(problem); index += block_count()) {
        Inside in_image = inside<P>(problem, tile_at<P>(problem, index));
        for (int slice = 0; slice < P::kSlices; ++slice, ++use) {
            Turn at = turn<P::kSlots>(use);
            int chunk = slice * kPixelChunks + thread % kPixelChunks;
            mbarrier_wait(P::halo_full(at.slot), at.parity);
            if (load_shared<uint32_t>(P::norm_wide(chunk)))
                normalize_wide<P, kType>(P::slice(at.slot), in_scale + chunk * kChunkChannels,
                                         in_shift + chunk * kChunkChannels, in_image, thread);
            else
                normalize_packed<P, kType>(P::slice(at.slot), load_shared<Chunk>(P::norm_scale(chunk)),
                                           load_shared<Chunk>(P::norm_shift(chunk)), thread);
            fence_proxy_async();
            mbarrier_arrive(P::halo_normalized(at.slot));
        }
    }
}

}  // namespace conv3x3_halo
