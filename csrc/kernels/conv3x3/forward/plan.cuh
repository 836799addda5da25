// conv3x3_halo: how the work is cut up, and where everything lies in shared memory.
//
// The output maps of a batch are stacked, one blank row between two images, and cut into tiles of kWholeRows stacked
// rows by 8 columns. The blank row is the padding that two images share, so a tile may hold the end of one image and
// the beginning of the next, and small maps fill the tensor cores as well as large ones. What is computed for a blank
// row, or right of the last column, is dropped: TMA clips what lies outside of the map.
//
// A tile's input comes in slices of 64 channels: kHaloRows rows of kRowPixels pixels of 128 bytes, one TMA load (two at
// stride 2) a row. Tap (r, s) reads, for output row i and column j of the tile, the pixel at
//     stride 1:  row i + r,      pixel j + s
//     stride 2:  row 2 * i + r,  pixel j of the even columns (s = 1), pixel j + s / 2 of the odd ones (s = 0, 2)
// so at stride 2 a row holds its odd columns first, its even ones after: neighbours in the output are neighbours there,
// and every tap is one regular matrix of 8-pixel groups, kGroupBytes apart, at kTapOffset(tap).
#pragma once
#include "device/primitives.cuh"

namespace conv3x3_halo {

constexpr int kTaps = 9, kLastTap = kTaps - 1;
constexpr int kSliceChannels = 64;
constexpr int kPixelBytes = 2 * kSliceChannels;  // of one slice: one row of the 128-byte swizzle
constexpr int kPixelChunks = kPixelBytes / 16;
constexpr int kTileColumns = 8;                          // one group: the rows of a core matrix
constexpr int kFilterTile = 64;                          // M of one wgmma
constexpr int kFilterBytes = kFilterTile * kPixelBytes;  // of one tap and slice
constexpr int kSteps = kSliceChannels / 16;              // wgmmas a tap and slice, of k = 16 each

constexpr int kWarpgroup = 128;
constexpr int kConsumers = 2;  // warpgroups; warpgroup 0 loads and normalizes
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kConsumerWarps = kWarpgroup / 32;

enum class Epilogue { kScaleShiftAct, kStatistics };

// n / divisor by a multiplication, for n < 2^31: what the host works out, no thread has to keep in registers
// (Granlund and Montgomery 1994).
struct Divisor {
    uint32_t divisor, multiplier, shift;

    DEVICE int quotient(int n) const {
        return static_cast<int>(
            (static_cast<uint32_t>(uint64_t{multiplier} * static_cast<uint32_t>(n) >> 32) + static_cast<uint32_t>(n)) >>
            shift);
    }
};

HOST_DEVICE constexpr Divisor make_divisor(uint32_t divisor) {
    uint32_t shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    uint64_t multiplier = ((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor)) / divisor + 1;
    return {divisor, static_cast<uint32_t>(multiplier), shift};
}

struct Problem {
    int images, height, width;  // of the input
    int out_height, out_width;  // ceil(height / stride), ceil(width / stride)
    Divisor image_pitch;        // stacked output rows an image: its own and a blank one
    Divisor tiles_across;
};

HOST_DEVICE constexpr Problem make_problem(int images, int height, int width, int stride) {
    int out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
    return {images,
            height,
            width,
            out_height,
            out_width,
            make_divisor(static_cast<uint32_t>(out_height + 1)),
            make_divisor(static_cast<uint32_t>((out_width + kTileColumns - 1) / kTileColumns))};
}

// Tiles of `tile_rows` stacked output rows.
HOST_DEVICE constexpr int tile_count(const Problem& p, int tile_rows) {
    int stacked_rows = p.images * (p.out_height + 1) - 1;
    return (stacked_rows + tile_rows - 1) / tile_rows * static_cast<int>(p.tiles_across.divisor);
}

// The numbers of one instantiation that were chosen, not derived.
struct Choice {
    int tile_rows;      // of a consumer: N of a wgmma is 8 * tile_rows
    int filter_tiles;   // accumulators of 64 filters that a consumer holds
    int halo_slots;     // slices in shared memory
    int weight_stages;  // 128 filters, or all 64, x 64 channels of one tap each; 0: the weights stay in registers
    int staged_rows;    // tile rows of 64 channels that a consumer turns around at once for the TMA store
};

// A pixel of input is loaded once per tile, by whoever needs how many filters of it: filter_tiles * 128 is every
// filter, or (512 filters, stride 1) all slices stay while the filters pass by twice. The rest fills 227 KB. Input
// channels only add slices.
constexpr Choice choose(int filters, int stride) {
    if (stride == 1) {
        if (filters == 64) return {16, 1, 4, 0, 16};
        if (filters == 128) return {32, 1, 3, 4, 8};
        if (filters == 256) return {16, 2, 4, 5, 16};
        return {16, 2, 8, 2, 4};
    }
    if (filters == 64) return {16, 1, 2, 0, 16};
    if (filters == 128) return {16, 1, 2, 3, 8};
    if (filters == 256) return {16, 2, 2, 3, 8};
    return {8, 4, 3, 5, 8};
}

// A tile, its halo, and where the taps find their pixels in it. `kParts` consumers have kRows rows of it each.
template <int kConvStride, int kRows, int kParts = 1>
struct TileShape {
    static constexpr int kStride = kConvStride;
    static constexpr int kTileRows = kRows, kTilePixels = kTileRows * kTileColumns;
    static constexpr int kAccumulators = kTilePixels / 2;  // registers of a thread for 64 filters
    static constexpr int kWholeRows = kParts * kTileRows;

    static constexpr int kHaloRows = kStride * (kWholeRows - 1) + 3;
    static constexpr int kLoadPixels = kStride == 1 ? kTileColumns + 2 : kTileColumns + 1;  // of one TMA load
    static constexpr int kRowPixels = kStride * kLoadPixels;
    static_assert(kStride == 1 || kStride == 2);
    static constexpr int kRowBytes = kRowPixels * kPixelBytes;
    static constexpr int kGroupBytes = kStride * kRowBytes;
    static constexpr int kSliceBytes = kHaloRows * kRowBytes;
    static constexpr int kHaloPixels = kHaloRows * kRowPixels;

    DEVICE static int tap_offset(int tap) {
        int row = tap / 3, column = tap % 3;
        int pixel = kStride == 1 ? column : column == 1 ? kLoadPixels : column / 2;
        return row * kRowBytes + pixel * kPixelBytes;
    }

    HOST_DEVICE static constexpr int tile_count(const Problem& p) { return conv3x3_halo::tile_count(p, kWholeRows); }
};

// Consumers with filters of their own. Weights in registers: each has its own tiles. Through shared memory: both have
// one tile, of which each has 64 filters, or half of the rows where there are no more than 64.
constexpr int filter_consumers(int filters, const Choice& choice) {
    return choice.weight_stages == 0 || filters == kFilterTile ? 1 : kConsumers;
}
constexpr int row_parts(int filters, const Choice& choice) {
    return choice.weight_stages == 0 ? 1 : kConsumers / filter_consumers(filters, choice);
}

template <int kChannelCount, int kFilterCount, int kConvStride, Choice kChosen = choose(kFilterCount, kConvStride)>
struct Plan : TileShape<kConvStride, kChosen.tile_rows, row_parts(kFilterCount, kChosen)> {
    using TileShape<kConvStride, kChosen.tile_rows, row_parts(kFilterCount, kChosen)>::kSliceBytes;
    static constexpr Choice kChoice = kChosen;
    static constexpr int kChannels = kChannelCount, kFilters = kFilterCount;
    static constexpr int kFilterTiles = kChoice.filter_tiles;
    static constexpr int kSlots = kChoice.halo_slots, kStages = kChoice.weight_stages;
    static constexpr int kStagedRows = kChoice.staged_rows;
    static constexpr int kSlices = kChannels / kSliceChannels;
    static constexpr bool kWeightsInRegisters = kStages == 0;
    static_assert(!kWeightsInRegisters || kSlices == 1);
    static constexpr int kFilterConsumers = filter_consumers(kFilters, kChoice);
    static constexpr int kFiltersAtOnce = kFilterTiles * kFilterTile * kFilterConsumers;
    static constexpr int kPasses = kFilters / kFiltersAtOnce;
    static_assert(kPasses == 1 || kSlots == kSlices, "a second pass over the filters finds every slice in its slot");

    // What setmaxnreg shares out: the 3 x 168 registers that a block of 384 threads is launched with.
    static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
    static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 3 * 168);

    // ---- shared memory, from smem_base() on ----

    static constexpr int kStageBytes = kFilterConsumers * kFilterBytes;
    static constexpr int kStagedBytes = kStagedRows * kTileColumns * kPixelBytes;
    static constexpr int kMomentSets = kConsumers / kFilterConsumers;

    static constexpr int kWeightsAt = 0;
    static constexpr int kWeightsBytes = (kWeightsInRegisters ? 1 : kStages) * kStageBytes;
    static constexpr int kStagedAt = kWeightsAt + kWeightsBytes;
    static constexpr int kHaloAt = kStagedAt + kConsumers * kStagedBytes;
    static constexpr int kNormAt = kHaloAt + kSlots * kSliceBytes;        // packed scale, then packed shift
    static constexpr int kNormWideAt = kNormAt + 2 * 2 * kChannels;       // one word per eight channels
    static constexpr int kMomentsAt = kNormWideAt + 4 * (kChannels / 8);  // (mean, M2) per set and filter
    static constexpr int kCountsAt = kMomentsAt + kMomentSets * 8 * kFilters;
    static constexpr int kBarriersAt = kCountsAt + 16 * kMomentSets;
    static constexpr int kBarriers = 3 * kSlots + 2 * kStages + kConsumers + 2;
    static constexpr int kSharedBytes = kBarriersAt + 8 * kBarriers;
    static_assert(kSharedBytes <= 227 * 1024);
    static_assert(!kWeightsInRegisters || kSlots * kSliceBytes >= kLastTap * kFilterBytes,
                  "the weights pass through it");

    DEVICE static SmemAddress weights(int stage) { return smem_base() + kWeightsAt + stage * kStageBytes; }
    DEVICE static SmemAddress staged(int consumer) { return smem_base() + kStagedAt + consumer * kStagedBytes; }
    DEVICE static SmemAddress slice(int slot) { return smem_base() + kHaloAt + slot * kSliceBytes; }
    DEVICE static SmemAddress norm_scale(int chunk) { return smem_base() + kNormAt + 16 * chunk; }
    DEVICE static SmemAddress norm_shift(int chunk) { return norm_scale(chunk) + 2 * kChannels; }
    DEVICE static SmemAddress norm_wide(int chunk) { return smem_base() + kNormWideAt + 4 * chunk; }
    DEVICE static SmemAddress moments(int set, int filter) {
        return smem_base() + kMomentsAt + 8 * (set * kFilters + filter);
    }
    DEVICE static SmemAddress count(int set) { return smem_base() + kCountsAt + 16 * set; }

    DEVICE static SmemAddress halo_full(int slot) { return barrier(slot); }
    DEVICE static SmemAddress halo_normalized(int slot) { return barrier(kSlots + slot); }
    DEVICE static SmemAddress halo_empty(int slot) { return barrier(2 * kSlots + slot); }
    DEVICE static SmemAddress weights_full(int stage) { return barrier(3 * kSlots + stage); }
    DEVICE static SmemAddress weights_empty(int stage) { return barrier(3 * kSlots + kStages + stage); }
    DEVICE static SmemAddress residual_full(int consumer) { return barrier(3 * kSlots + 2 * kStages + consumer); }
    DEVICE static SmemAddress filters_full() { return residual_full(kConsumers); }
    DEVICE static SmemAddress filters_taken() { return residual_full(kConsumers + 1); }

  private:
    DEVICE static SmemAddress barrier(int index) { return smem_base() + kBarriersAt + 8 * index; }
};

struct Tile {
    int row, column;  // of its first output pixel; the row is a stacked one
};

template <class P>
DEVICE Tile tile_at(const Problem& problem, int index) {
    int down = problem.tiles_across.quotient(index);
    int across = index - down * static_cast<int>(problem.tiles_across.divisor);
    return {down * P::kWholeRows, across * kTileColumns};
}

struct MapRow {
    int image, row;  // outside of the map (row < 0, row >= height, image >= images): padding
};

// Row `row` of a tile's halo; an image has stride * image_pitch of them, the first of which is the padding above it.
template <class P>
DEVICE MapRow halo_row(const Problem& problem, const Tile& tile, int row) {
    int stacked = P::kStride * tile.row + row, image = problem.image_pitch.quotient(stacked / P::kStride);
    return {image, stacked - image * P::kStride * static_cast<int>(problem.image_pitch.divisor) - 1};
}

// Walks down the output rows of a tile.
class OutputRows {
  public:
    DEVICE OutputRows(const Problem& problem, int stacked_row) : blank_(problem.out_height) {
        at_.image = problem.image_pitch.quotient(stacked_row);
        at_.row = stacked_row - at_.image * (blank_ + 1);
    }
    DEVICE MapRow next() {
        MapRow here = at_;
        at_ = here.row == blank_ ? MapRow{here.image + 1, 0} : MapRow{here.image, here.row + 1};
        return here;
    }

  private:
    int blank_;
    MapRow at_;
};

// The n-th use of a ring of `size` slots: which slot, and the parity of the phase of its barriers.
struct Turn {
    int slot;
    uint32_t parity;
};
template <int kSize>
DEVICE Turn turn(int use) {
    return {use % kSize, static_cast<uint32_t>(use / kSize % 2)};
}

}  // namespace conv3x3_halo
