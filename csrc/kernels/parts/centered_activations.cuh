// The activations that a Gram matrix is of: a = prologue(z) - center, rounded to z's type before and after the
// subtraction. Two neighbouring channels at a time, as they lie in a register.
#pragma once
#include "device/gemm.cuh"

namespace activations {

// The prologue relu(z * scale + shift) in global memory.
struct Prologue {
    const float* scale;  // (C,), or null: z itself
    const float* shift;  // (C,)
};

// Of two neighbouring channels. Of channels that do not exist all is zero, so that a is too.
struct Norm {
    Floats2 scale, shift, center;
    float floor;  // the ReLU's zero; without a prologue scale is 1 and nothing lies below: no branch in any loop
};

// About a centre of zero.
DEVICE Norm load_norm(const Prologue& prologue, int channel, int channels) {
    Norm norm = {};
    if (channel >= channels) return norm;
    norm.floor = prologue.scale ? 0.0f : -INFINITY;
    norm.scale = prologue.scale ? load_pair(prologue.scale + channel) : Floats2{{1.0f, 1.0f}};
    if (prologue.scale) norm.shift = load_pair(prologue.shift + channel);
    return norm;
}

DEVICE Norm load_norm(const Prologue& prologue, const float* center, int channel, int channels) {
    Norm norm = load_norm(prologue, channel, channels);
    if (channel < channels) norm.center = load_pair(center + channel);
    return norm;
}

// NaN comes out as NaN.
template <ElementType kType>
DEVICE uint32_t normalized(uint32_t z, const Norm& norm) {
    Floats2 a = unpack<kType>(z);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float value = fmaf(a.value[i], norm.scale.value[i], norm.shift.value[i]);
        a.value[i] = value < norm.floor ? norm.floor : value;
    }
    return pack<kType>(a.value[0], a.value[1]);
}

template <ElementType kType>
DEVICE uint32_t centered(uint32_t z, const Norm& norm) {
    Floats2 a = unpack<kType>(normalized<kType>(z, norm));
    return pack<kType>(a.value[0] - norm.center.value[0], a.value[1] - norm.center.value[1]);
}

}  // namespace activations
