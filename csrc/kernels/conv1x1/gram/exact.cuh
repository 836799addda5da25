// conv1x1_gram_exact: what conv1x1_gram makes, in float64, where a flag in device memory asks for it; else its blocks
// return at once. For filters whose variance cancels (fused_resnet/backends/gram_check.py): rare, so it is plain. A
// block has 32 x 32 elements of G, over every so-many-th group of 32 pixels; a thread has 2 x 2 of them. Activations
// are rounded as everywhere (kernels/parts/centered_activations.cuh), and their products are exact in float64.
#pragma once
#include "kernels/parts/centered_activations.cuh"

namespace conv1x1_gram_exact {

using activations::Norm;
using activations::Prologue;

constexpr int kThreads = 256, kSide = 32, kPixels = 32, kChunks = kSide / kChunkChannels, kAcross = 16;
constexpr int kPixelBytes = kSide * static_cast<int>(sizeof(float)), kOperandBytes = kPixels * kPixelBytes;
constexpr int kSharedBytes = 2 * kOperandBytes;
constexpr int kBlocksWanted = 264;  // two for each of 132 multiprocessors

struct Problem {
    const int* flag;
    const uint16_t* z;
    Prologue prologue;
    const float* center;
    double* partials;  // (rows, C + 1, C)
    int n, h, w, channels, stride, rows;

    HOST_DEVICE int p() const { return (h - 1) / stride + 1; }
    HOST_DEVICE int q() const { return (w - 1) / stride + 1; }
    HOST_DEVICE int pixels() const { return n * p() * q(); }
    HOST_DEVICE int groups() const { return (pixels() - 1) / kPixels + 1; }
    HOST_DEVICE int sides() const { return (channels - 1) / kSide + 1; }
    HOST_DEVICE int blocks() const { return sides() * sides() * rows; }
    DEVICE const uint16_t* address(int pixel, int channel) const {
        int column = pixel % q(), line = pixel / q() % p(), image = pixel / q() / p();
        return z + ((image * h + line * stride) * w + column * stride) * channels + channel;
    }
};

// Threads 0 to 127 bring the block's rows, the others its columns: a pixel and a chunk of channels each.
template <ElementType kType>
DEVICE void load(const Problem& problem, int group, int first_row, int first_column) {
    int operand = thread_index() / (kThreads / 2), item = thread_index() % (kThreads / 2);
    int chunk = item % kChunks, pixel = item / kChunks, at = group * kPixels + pixel;
    int channel = (operand == 0 ? first_row : first_column) + chunk * kChunkChannels;
    Chunk a = {};
    if (at < problem.pixels() && channel < problem.channels) {
        a = load_global(problem.address(at, channel));
#pragma unroll
        for (int pair = 0; pair < kChunkChannels / 2; ++pair) {
            Norm norm = activations::load_norm(problem.prologue, problem.center, channel + 2 * pair, problem.channels);
            a.word[pair] = activations::centered<kType>(a.word[pair], norm);
        }
    }
    Floats8 wide = widen<kType>(a);
    const float* v = wide.value;
    SmemAddress to = smem_base() + operand * kOperandBytes + pixel * kPixelBytes + chunk * sizeof(Floats8);
    store_shared(to, Floats4{{v[0], v[1], v[2], v[3]}});
    store_shared(to + sizeof(Floats4), Floats4{{v[4], v[5], v[6], v[7]}});
}

struct Sums {
    double g[2][2] = {}, total[2] = {};
};

DEVICE void multiply(Sums& sums, int row, int column) {
#pragma unroll 4
    for (int pixel = 0; pixel < kPixels; ++pixel) {
        SmemAddress from = smem_base() + pixel * kPixelBytes;
        Floats2 a = load_shared<Floats2>(from + row * sizeof(float));
        Floats2 b = load_shared<Floats2>(from + kOperandBytes + column * sizeof(float));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            sums.total[i] += double{a.value[i]};
#pragma unroll
            for (int j = 0; j < 2; ++j) sums.g[i][j] += double{a.value[i]} * double{b.value[j]};
        }
    }
}

DEVICE void write(const Problem& problem, const Sums& sums, int slot, int row, int column) {
    int64_t channels = problem.channels;
    double* to = problem.partials + slot * (channels + 1) * channels;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (row + i >= channels) return;
#pragma unroll
        for (int j = 0; j < 2; ++j)
            if (column + j < channels) store_to(to + (row + i) * channels + column + j, sums.g[i][j]);
        if (column == 0) store_to(to + channels * channels + row + i, sums.total[i]);
    }
}

template <ElementType kType>
__global__ void __launch_bounds__(kThreads) gram_exact_kernel(const __grid_constant__ Problem problem) {
    if (load_from<int>(problem.flag) == 0) return;
    int side = problem.sides(), slot = block_index() / (side * side), block = block_index() % (side * side);
    int first_row = block / side * kSide, first_column = block % side * kSide;
    int row = thread_index() / kAcross * 2, column = thread_index() % kAcross * 2;
    Sums sums;
    for (int group = slot; group < problem.groups(); group += problem.rows) {
        load<kType>(problem, group, first_row, first_column);
        cta_sync();
        multiply(sums, row, column);
        cta_sync();
    }
    write(problem, sums, slot, first_row + row, first_column + column);
}

}  // namespace conv1x1_gram_exact
