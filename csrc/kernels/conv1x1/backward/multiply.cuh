// conv1x1_backward, consumers: dz of the consumer's pixels, and both of its products with 64 channels.
//
// dz goes through shared memory: as it lies there it is operand A of dx, transposed that of dW.
#pragma once
#include "kernels/conv1x1/backward/plan.cuh"
#include "kernels/conv1x1/forward/multiply.cuh"

namespace conv1x1_backward {

struct NormVectors {  // of a thread's eight filters
    Floats8 a = {}, b = {}, c = {};

    // Of filters that do not exist, zeros.
    DEVICE NormVectors(const BackwardArguments& arguments, const Consumer& consumer) {
        int filter = consumer.thread % kFilterChunks * kChunkChannels;
        if (filter >= arguments.filters) return;
        a = load_floats8(arguments.norm.a + filter);
        if (!arguments.norm.b) return;
        b = load_floats8(arguments.norm.b + filter);
        c = load_floats8(arguments.norm.c + filter);
    }
};

template <ElementType kType>
DEVICE Chunk bn_backward(const Chunk& g, const Chunk& z, const NormVectors& norm) {
    auto pair = [](const Floats8& vector, int i) { return Floats2{{vector.value[2 * i], vector.value[2 * i + 1]}}; };
    Chunk dz;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        dz.word[i] =
            kernels::bn_backward<kType>(g.word[i], z.word[i], pair(norm.a, i), pair(norm.b, i), pair(norm.c, i));
    return dz;
}

// Zeros where there is no pixel: c alone would not be.
template <class V>
DEVICE void make_gradient(const BackwardArguments& arguments, const NormVectors& norm, const Box& box,
                          const Consumer& consumer) {
    constexpr int kRows = kWarpgroup / kFilterChunks;
    int chunk = consumer.thread % kFilterChunks;
#pragma unroll
    for (int i = 0; i < kConsumerPixels / kRows; ++i) {
        int pixel = consumer.index * kConsumerPixels + i * kRows + consumer.thread / kFilterChunks;
        Chunk z = {}, dz = {};
        if (arguments.norm.b) z = load_shared<Chunk>(chunk_address(V::z(), pixel, chunk));
        if (arguments.tiles.inside(box, pixel))
            dz = bn_backward<V::kType>(load_shared<Chunk>(chunk_address(V::g(), pixel, chunk)), z, norm);
        store_shared(chunk_address(V::dz(), pixel, chunk), dz);
    }
}

// dx = dz weight, dW += dz^T x.
template <class V>
DEVICE void multiply_slice(float (&dx)[kAccumulators], float (&dw)[kAccumulators], int slice, int stage,
                           const Consumer& consumer) {
    uint32_t first_pixel = consumer.index * kConsumerPixels * kPixelBytes;
    uint64_t dz = operand(V::dz() + first_pixel), x = operand(V::x(stage) + first_pixel);
    uint64_t weights = operand(V::weights(slice));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kMaxFilters / 16; ++step)
        wgmma_ss<V::kType, kSliceChannels, Major::kK, Major::kMN>(dx, advanced(dz, step * 32),
                                                                  advanced(weights, step * kStepRowsBytes), step > 0);
#pragma unroll
    for (int step = 0; step < kConsumerPixels / 16; ++step)
        wgmma_ss<V::kType, kSliceChannels, Major::kMN, Major::kMN>(dw, advanced(dz, step * kStepRowsBytes),
                                                                   advanced(x, step * kStepRowsBytes), true);
    wgmma_commit();
    wgmma_wait<0>();
    settled(dx);
    settled(dw);
}

}  // namespace conv1x1_backward
