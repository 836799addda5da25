// The backward of a batch norm, as conv3x3_halo_dgrad and conv3x3_halo_wgrad apply it to what lies in shared memory.
#pragma once
#include "kernels/conv3x3/forward/load.cuh"
#include "kernels/parts/gradient_of_norm.cuh"

namespace conv3x3_halo_dgrad {

using namespace conv3x3_halo;

using kernels::BnBackward;

struct Coefficients {  // of four channels
    Floats4 a, b, c;
};

DEVICE Coefficients load_coefficients(const BnBackward& norm, int channel) {
    Coefficients result = {load_global(norm.a + channel), {}, {}};
    if (norm.b) {
        result.b = load_global(norm.b + channel);
        result.c = load_global(norm.c + channel);
    }
    return result;
}

template <ElementType kType>
DEVICE HalfChunk bn_backward(const HalfChunk& g, const HalfChunk& z, const Coefficients& k) {
    HalfChunk dz;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        auto pair = [&](const Floats4& four) { return Floats2{{four.value[2 * i], four.value[2 * i + 1]}}; };
        dz.word[i] = kernels::bn_backward<kType>(g.word[i], z.word[i], pair(k.a), pair(k.b), pair(k.c));
    }
    return dz;
}

}  // namespace conv3x3_halo_dgrad
