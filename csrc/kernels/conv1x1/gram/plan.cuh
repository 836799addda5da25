// conv1x1_gram: how the work is cut up, and where everything lies in shared memory.
#pragma once
#include "kernels/parts/centered_activations.cuh"
#include "kernels/parts/pixel_sums.cuh"
#include "kernels/parts/pixel_tiles.cuh"

namespace conv1x1_gram {

using namespace pixels;
using activations::Norm;
using activations::Prologue;

constexpr int kConsumers = 2;  // warpgroups, each with 64 rows of a block of G
constexpr int kConsumerThreads = kConsumers * kWarpgroup;
constexpr int kConsumerWarps = kConsumers * kWarps;
constexpr int kThreads = kWarpgroup + kConsumerThreads;
constexpr int kConsumerBarrier = 1;  // named; 0 is cta_sync

constexpr int kRunTiles = 4;  // of products in one accumulator: 512 pixels

constexpr float kCenteredBeyond = 4;  // deviations: nearer to zero z is exact, and the rounded difference is not

struct Problem {
    Tiles tiles;  // of every stride-th pixel
    int channels, stride;
};

struct Arguments {
    Problem problem;
    Prologue prologue;
    float* center;    // (C,)
    float* partials;  // (slots, C + 1, C): the blocks of G on and above the diagonal, and S
};

struct Parameters {
    TensorMap z;
    Arguments arguments;
};

// What a CTA does: the block of G at (first_row, first_column), over every `slots`-th tile of pixels.
struct Share {
    int first_row, first_column;
    int slot, slots;

    DEVICE bool is_diagonal() const { return first_row == first_column; }
    DEVICE int operands() const { return is_diagonal() ? 1 : 2; }
    DEVICE int first_channel(int operand) const { return operand == 0 ? first_row : first_column; }
};

// With blocks of kChannels x kChannels of G.
template <ElementType kElementType, int kChannelCount>
struct Variant {
    static constexpr ElementType kType = kElementType;
    static constexpr int kChannels = kChannelCount;
    static constexpr int kSlices = kChannels / kSliceChannels;
    static constexpr int kAccumulators = kChannels / 2;

    // A thread that makes activations has one chunk of every kRows-th pixel of an operand.
    static constexpr int kChunks = kChannels / kChunkChannels, kRows = kConsumerThreads / kChunks;
    using Sums = ThreadSums<kConsumerThreads, kChunks>;

    // ---- shared memory, from smem_base() on ----

    static constexpr int kOperandBytes = kSlices * kSliceBytes;  // a tile of pixels by kChannels
    static constexpr int kControlBytes = 256;                    // barriers
    static constexpr int kStages = (227 * 1024 - kControlBytes - Sums::kBytes) / kOperandBytes;
    static_assert(kStages >= 6);  // a pair each to load, to turn into activations and to multiply
    static constexpr int kSumsAt = kStages * kOperandBytes;
    static constexpr int kBarriersAt = kSumsAt + Sums::kBytes;
    static constexpr int kSharedBytes = kBarriersAt + 8 * 2 * kStages;
    static_assert(kSharedBytes - kBarriersAt <= kControlBytes && kSharedBytes <= 227 * 1024);

    DEVICE static SmemAddress operand(int stage) { return smem_base() + stage * kOperandBytes; }
    DEVICE static Sums sums() { return {smem_base() + kSumsAt, kConsumerBarrier}; }
    DEVICE static SmemAddress full(int stage) { return smem_base() + kBarriersAt + 8 * stage; }
    DEVICE static SmemAddress empty(int stage) { return full(kStages + stage); }

    // ---- work ----

    HOST_DEVICE static int blocks(const Problem& p) { return (p.channels + kChannels - 1) / kChannels; }
    // Blocks of G on and above the diagonal. With b rows of them z is read b times: each tile by b (b + 1) / 2 CTAs
    // that are neighbours in the grid, so that all but the first find it in the L2 cache.
    HOST_DEVICE static int pairs(const Problem& p) { return blocks(p) * (blocks(p) + 1) / 2; }
};

template <class V>
DEVICE Share share_of(const Problem& p) {
    int blocks = V::blocks(p), pairs = V::pairs(p);
    int row = 0, column = block_index() % pairs;
    for (; column >= blocks - row; ++row) column -= blocks - row;
    return {row * V::kChannels, (row + column) * V::kChannels, block_index() / pairs, block_count() / pairs};
}

// ---- the sum over the rows of partials, a kernel of its own ----

constexpr int kSumThreads = 256, kSumChunks = 8;
constexpr int kSumColumns = kSumChunks * kChunkChannels;  // a block's, of one row of G
constexpr int kSumLanes = kSumThreads / kSumChunks;       // that share the rows of partials
using RowSums = ThreadSums<kSumThreads, kSumChunks>;

}  // namespace conv1x1_gram
