// The backward of a batch norm, as conv3x3_halo_dgrad and conv3x3_halo_wgrad apply it: dz = a * g + b * z + c in
// float32, rounded to g's type.
#pragma once
#include "kernels/conv3x3_halo_load.cuh"

namespace conv3x3_halo_dgrad {

using namespace conv3x3_halo;

struct BnBackward {
    const float *a, *b, *c;  // (K,); b and c null: constant statistics, and no z
};

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
        float value[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float wide_g = widen<kType>(static_cast<uint16_t>(g.word[i] >> 16 * j));
            float wide_z = widen<kType>(static_cast<uint16_t>(z.word[i] >> 16 * j));
            int channel = 2 * i + j;
            value[j] = fmaf(k.a.value[channel], wide_g, fmaf(k.b.value[channel], wide_z, k.c.value[channel]));
        }
        dz.word[i] = pack<kType>(value[0], value[1]);
    }
    return dz;
}

}  // namespace conv3x3_halo_dgrad
