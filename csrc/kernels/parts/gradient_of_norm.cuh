// The backward of a batch norm, as the prologue of a convolution's gradients applies it: dz = a * g + b * z + c in
// float32, rounded to g's type.
#pragma once
#include "device/gemm.cuh"

namespace kernels {

struct BnBackward {
    const float *a, *b, *c;  // (K,); b and c null: constant statistics, and no z
};

// Two neighbours, each with its own a, b and c.
template <ElementType kType>
DEVICE uint32_t bn_backward(uint32_t g, uint32_t z, const Floats2& a, const Floats2& b, const Floats2& c) {
    Floats2 wide_g = unpack<kType>(g), wide_z = unpack<kType>(z);
    float dz[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
        dz[i] = fmaf(a.value[i], wide_g.value[i], fmaf(b.value[i], wide_z.value[i], c.value[i]));
    return pack<kType>(dz[0], dz[1]);
}

}  // namespace kernels
