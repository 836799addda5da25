// bottleneck_inference: how the work is cut up, and where everything lies in shared memory.
//
// The output maps of a batch are stacked, one blank row between two images, and cut into tiles, as conv3x3_halo's are
// (kernels/conv3x3/forward/plan.cuh, whose tiles, rows and slices of 64 channels these are). A tile's y1 is as large as
// its halo: kHaloRows rows of kRowPixels pixels, at stride 2 the odd columns of the map first, its even ones after, so
// that each of the nine taps is one regular matrix, groups of 8 pixels that lie kGroupPixels apart, from
// tap_pixels(tap) on.
//
// Tiles of 8 columns make one group of every row. Those of 14 make a halo of 16: there the pixels go through row after
// row, two halo columns between two rows included, whose products are dropped.
//
// Both consumers multiply at once: where there are 128 channels each has 64 of them and all pixels (kFilterParts),
// where there are 64, half of the pixels (kPixelParts).
//
// The input is read 1.5 times at most. At stride 1 the slices of a tile stay until its shortcut is done, which decides
// how large a tile of 128 channels can be. At stride 2 the shortcut's quarter of the pixels is loaded again. Maps with
// fewer than four rows or columns are read up to 1.7 times.
#pragma once
#include "device/bottleneck.cuh"
#include "kernels/conv3x3/forward/plan.cuh"

namespace bottleneck_inference {

using conv3x3_halo::halo_row;
using conv3x3_halo::kConsumers;
using conv3x3_halo::kConsumerWarps;
using conv3x3_halo::kFilterBytes;
using conv3x3_halo::kFilterTile;
using conv3x3_halo::kPixelBytes;
using conv3x3_halo::kSliceChannels;
using conv3x3_halo::kSteps;
using conv3x3_halo::kTaps;
using conv3x3_halo::kThreads;
using conv3x3_halo::kWarpgroup;
using conv3x3_halo::make_divisor;
using conv3x3_halo::MapRow;
using conv3x3_halo::OutputRows;
using conv3x3_halo::Problem;
using conv3x3_halo::Tile;
using conv3x3_halo::Turn;
using conv3x3_halo::turn;

constexpr int kGroup = 8;                              // pixels: the rows of a core matrix
constexpr int kExpansion = 4;                          // output channels per channel of y1 and y2
constexpr uint32_t kAtomBytes = kGroup * kPixelBytes;  // of pixels or filters that follow each other
constexpr int kMaxProjectedSlices = 4;                 // 64 channels each of a projected input
constexpr int kCenterTap = 4;
constexpr int kFirstConsumerBarrier = 1, kAllConsumersBarrier = kFirstConsumerBarrier + kConsumers;

enum class Shortcut { kIdentity, kProjection };
// Streamed: through a ring of stages, anew for every tile. Resident: W2 in registers, the others in shared memory.
enum class Weights { kStreamed, kResident };

struct Norm {
    const float *scale, *shift;  // one of each a filter
};

struct Arguments {
    Problem problem;
    int slices;          // of 64 channels of the input
    bool weights_ready;  // no grid that may still run writes them
    Norm conv1, conv2, conv3, downsample;
};

struct Parameters {
    TensorMap input, input_even;  // rows of a halo; at stride 2 its odd columns, and its even ones
    TensorMap weight1, weight2, weight3, downsample, output;
    Arguments arguments;
};

// The numbers of one instantiation that were chosen, not derived: they fill 227 KB.
struct Choice {
    int tile_rows;
    int input_slots;    // slices of a halo
    int weight_stages;  // 64 filters x 64 channels each
};

constexpr Choice choose(int channels, int stride, Shortcut shortcut, Weights weights) {
    bool is_identity = shortcut == Shortcut::kIdentity;
    if (weights == Weights::kResident) return is_identity ? Choice{16, 5, 8} : Choice{16, 4, 9};
    if (channels == 64) return stride == 1 ? Choice{16, 5, 6} : Choice{8, 2, 7};
    if (stride == 2) return {7, 2, 6};
    return is_identity ? Choice{7, 8, 4} : Choice{7, 5, 8};
}

constexpr int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <int kChannelCount, int kConvStride, Shortcut kShortcut, Weights kWeights>
struct Plan {
    static_assert((kChannelCount == 64 || kChannelCount == 128) && (kConvStride == 1 || kConvStride == 2));
    static_assert(kShortcut == Shortcut::kProjection || kConvStride == 1, "a strided block projects its shortcut");
    static_assert(kWeights == Weights::kStreamed || (kChannelCount == 64 && kConvStride == 1), "what fits");
    static constexpr Choice kChoice = choose(kChannelCount, kConvStride, kShortcut, kWeights);
    static constexpr int kChannels = kChannelCount, kStride = kConvStride;
    static constexpr bool kIdentity = kShortcut == Shortcut::kIdentity, kResident = kWeights == Weights::kResident;
    static constexpr bool kKeepsInput = kStride == 1;  // until the shortcut is done
    static constexpr int kInputSlots = kChoice.input_slots, kStages = kChoice.weight_stages;

    static constexpr int kSlices = kChannels / kSliceChannels;  // of y1 and y2
    static constexpr int kFilterParts = kSlices, kPixelParts = kConsumers / kFilterParts;
    static constexpr int kOutputChannels = kExpansion * kChannels;
    // Of the input.
    static constexpr int kMaxSlices = kIdentity ? kExpansion * kSlices : kResident ? 1 : kMaxProjectedSlices;
    static_assert(!kKeepsInput || kInputSlots >= kMaxSlices);
    static_assert(kResident || kStages % kFilterParts == 0, "a stage is always the same consumer's");
    // Each once, in the order of weight_blocks().
    static_assert(!kResident || kStages == kMaxSlices + kExpansion * (1 + (kIdentity ? 0 : kMaxSlices)));

    // ---- tiles ----

    static constexpr bool kWide = kChannels == 128 && kStride == 1;
    static constexpr int kTileRows = kChoice.tile_rows, kTileColumns = kWide ? 14 : 8;
    static constexpr int kOddPixels = kStride == 1 ? kTileColumns + 2 : kTileColumns + 1;  // of the first load of a row
    static constexpr int kEvenPixels = kStride == 1 ? 0 : kTileColumns;                    // of the second
    static constexpr int kRowPixels = kOddPixels + kEvenPixels;
    static constexpr int kHaloRows = kStride * (kTileRows - 1) + 3;
    static constexpr int kHaloPixels = kHaloRows * kRowPixels;
    static_assert(kHaloRows <= 32, "one row a lane");

    static constexpr int kTileRowPixels = kWide ? kRowPixels : kTileColumns;  // of y2 and of a staged output
    static constexpr int kTilePixels = kTileRows * kTileRowPixels, kGroups = kTilePixels / kGroup;
    static constexpr int kGroupPixels = kWide ? kGroup : kStride * kRowPixels;
    static constexpr uint32_t kGroupBytes = kGroupPixels * kPixelBytes;

    // What one consumer multiplies at once: N of a wgmma.
    static constexpr int kHaloPart = rounded_up(kHaloPixels, kGroup* kPixelParts) / kPixelParts;
    static constexpr int kTilePart = kTilePixels / kPixelParts, kPartRows = kTileRows / kPixelParts;

    // Of the halo, from a tile's first pixel on.
    HOST_DEVICE static constexpr int tap_pixels(int tap) {
        int row = tap / 3, column = tap % 3;
        return row * kRowPixels + (kStride == 1 ? column : column == 1 ? kOddPixels : column / 2);
    }

    HOST_DEVICE static constexpr Problem problem(int images, int height, int width) {
        Problem p = conv3x3_halo::make_problem(images, height, width, kStride);
        p.tiles_across = make_divisor(static_cast<uint32_t>((p.out_width + kTileColumns - 1) / kTileColumns));
        return p;
    }
    HOST_DEVICE static constexpr int tile_count(const Problem& p) {
        int stacked_rows = p.images * (p.out_height + 1) - 1;
        return (stacked_rows + kTileRows - 1) / kTileRows * static_cast<int>(p.tiles_across.divisor);
    }
    DEVICE static Tile tile_at(const Problem& p, int index) {
        int down = p.tiles_across.quotient(index);
        return {down * kTileRows, (index - down * static_cast<int>(p.tiles_across.divisor)) * kTileColumns};
    }

    static constexpr int kProducerRegisters = kResident ? 24 : 40, kConsumerRegisters = kResident ? 240 : 232;
    static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= 3 * 168, "what a launch allocates");

    // ---- shared memory, from smem_base() on ----

    static constexpr int kSlotPixels = kHaloPart * kPixelParts;  // more than TMA brings: the rest is zero
    static constexpr int kLastTapEnd = 2 * kRowPixels + 2 + (kGroups - 1) * kGroupPixels + kGroup;
    static constexpr int kHiddenPixels = kLastTapEnd > kSlotPixels ? rounded_up(kLastTapEnd, kGroup) : kSlotPixels;
    static constexpr int kInputBytes = kSlotPixels * kPixelBytes;     // of a slot
    static constexpr int kHiddenBytes = kHiddenPixels * kPixelBytes;  // of a slice of y1
    static constexpr int kTileBytes = kTilePixels * kPixelBytes;      // of a slice of y2, or of the input's shortcut
    static constexpr bool kSharesHidden = kFilterParts > 1;           // y2 in the place of y1

    static constexpr int kInputAt = 0;
    static constexpr int kY1At = kInputAt + kInputSlots * kInputBytes;
    static constexpr int kY2At = kSharesHidden ? kY1At : kY1At + kSlices * kHiddenBytes;
    static constexpr int kStridedAt = kY1At + kSlices * kHiddenBytes + (kSharesHidden ? 0 : kSlices * kTileBytes);
    static constexpr int kStagedAt = kStridedAt + (kKeepsInput ? 0 : kMaxSlices * kTileBytes);
    static constexpr int kStagedBytes = kIdentity ? 0 : kTilePart * kPixelBytes;  // of a consumer
    static constexpr int kWeightsAt = kStagedAt + kConsumers * kStagedBytes;
    static constexpr int kBarriersAt = kWeightsAt + kStages * kFilterBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * (2 * kInputSlots + 2 * kStages + 4);
    static_assert(kSharedBytes <= 227 * 1024);
    static_assert(!kResident || kInputSlots * kInputBytes >= kTaps * kFilterBytes, "W2 passes through it");

    DEVICE static SmemAddress input(int slot) { return smem_base() + kInputAt + slot * kInputBytes; }
    DEVICE static SmemAddress y1(int slice) { return smem_base() + kY1At + slice * kHiddenBytes; }
    DEVICE static SmemAddress y2(int slice) { return smem_base() + kY2At + slice * kTileBytes; }
    DEVICE static SmemAddress strided(int slice) { return smem_base() + kStridedAt + slice * kTileBytes; }
    DEVICE static SmemAddress staged(int consumer) { return smem_base() + kStagedAt + consumer * kStagedBytes; }
    DEVICE static SmemAddress weights(int stage) { return smem_base() + kWeightsAt + stage * kFilterBytes; }

    DEVICE static SmemAddress input_full(int slot) { return barrier(slot); }
    DEVICE static SmemAddress input_empty(int slot) { return barrier(kInputSlots + slot); }
    DEVICE static SmemAddress weights_full(int stage) { return barrier(2 * kInputSlots + stage); }  // resident: only 0
    DEVICE static SmemAddress weights_empty(int stage) { return weights_full(kStages + stage); }
    DEVICE static SmemAddress strided_full() { return weights_full(2 * kStages); }
    DEVICE static SmemAddress strided_empty() { return weights_full(2 * kStages + 1); }
    DEVICE static SmemAddress filters_full() { return weights_full(2 * kStages + 2); }
    DEVICE static SmemAddress slots_ready() { return weights_full(2 * kStages + 3); }

  private:
    DEVICE static SmemAddress barrier(int index) { return smem_base() + kBarriersAt + 8 * index; }
};

// What a consumer warpgroup is, and the part of a tile that is its own.
template <class P>
struct Consumer {
    int index, thread, filter_part, pixel_part;

    DEVICE explicit Consumer(int index)
        : index(index),
          thread(thread_index() % kWarpgroup),
          filter_part(P::kFilterParts > 1 ? index : 0),
          pixel_part(P::kPixelParts > 1 ? index : 0) {}
    // Register 4 * group + 2 * half + i of an accumulator is this filter of 64, pixel 2 * (lane % 4) + i of the group.
    DEVICE int filter(int half) const { return thread / 32 * 16 + lane_index() / 4 + 8 * half; }
    DEVICE void sync() const { named_barrier_sync(kFirstConsumerBarrier + index, kWarpgroup); }
    DEVICE static void sync_all() { named_barrier_sync(kAllConsumersBarrier, kConsumers * kWarpgroup); }
};

}  // namespace bottleneck_inference
