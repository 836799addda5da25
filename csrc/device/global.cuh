// Feature maps in global memory: eight 16-bit channels to an access of 16 bytes, computed with in float32.
//
// Maps are dense NHWC of float16 or bfloat16, kept here as uint16_t; vectors are float32, one element a channel. A
// map's and a vector's address, and the number of channels, are multiples of 16 bytes and of 8: launch/check.h sees to
// it.
#pragma once
#include <cmath>
#include <cstdint>

#include "device/primitives.cuh"

constexpr int kChunkChannels = 8;

struct alignas(16) Floats4 {
    float value[4];
};

// Eight channels, widened.
struct Floats8 {
    float value[kChunkChannels];
};

#ifdef __CUDACC__

// Maps: through the read-only path, so that the compiler may move loads ahead of stores to the output; and ahead of
// wait_for_previous_grid, therefore not in kernels that call it.
DEVICE Chunk load_global(const uint16_t* address) {
    uint4 bits = __ldg(reinterpret_cast<const uint4*>(address));
    return {{bits.x, bits.y, bits.z, bits.w}};
}
DEVICE uint64_t load_global(const uint8_t* address) {
    return __ldg(reinterpret_cast<const unsigned long long*>(address));
}

template <class T>
DEVICE T load_from(const void* address) {
    return *static_cast<const T*>(address);
}

template <class T>
DEVICE void store_to(void* address, const T& value) {
    *static_cast<T*>(address) = value;
}

DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
DEVICE float widen_f16(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE uint32_t pack_f16x2(float low, float high) {
    uint32_t result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

#else

template <class T>
DEVICE T load_from(const void* address) {
    cta().global_access("load");
    return *static_cast<const T*>(address);
}

DEVICE Chunk load_global(const uint16_t* address) {
    cta().read_only_access();
    return load_from<Chunk>(address);
}
DEVICE uint64_t load_global(const uint8_t* address) {
    cta().read_only_access();
    return load_from<uint64_t>(address);
}

template <class T>
DEVICE void store_to(void* address, const T& value) {
    cta().global_access("store");
    *static_cast<T*>(address) = value;
}

DEVICE float bits_to_float(uint32_t bits) { return std::bit_cast<float>(bits); }
DEVICE float widen_f16(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
DEVICE uint32_t pack_f16x2(float low, float high) {
    return std::bit_cast<uint16_t>(static_cast<_Float16>(low)) |
           uint32_t{std::bit_cast<uint16_t>(static_cast<_Float16>(high))} << 16;
}

#endif

// Vectors, and maps in kernels that call wait_for_previous_grid: by ordinary loads, which stay behind it.
DEVICE Floats4 load_global(const float* address) { return load_from<Floats4>(address); }
DEVICE Chunk load_ordered(const uint16_t* address) { return load_from<Chunk>(address); }

DEVICE void store_global(uint16_t* address, const Chunk& chunk) { store_to(address, chunk); }
DEVICE void store_global(float* address, const Floats4& values) { store_to(address, values); }
DEVICE void store_global(uint8_t* address, uint64_t bytes) { store_to(address, bytes); }

// ---- between the 16-bit formats and float32 ----

template <ElementType kType>
DEVICE float widen(uint16_t bits) {
    if constexpr (kType == ElementType::kBf16)
        return bits_to_float(uint32_t{bits} << 16);
    else
        return widen_f16(bits);
}

template <ElementType kType>
DEVICE Floats8 widen(const Chunk& chunk) {
    Floats8 wide;
#pragma unroll
    for (int i = 0; i < kChunkChannels; ++i)
        wide.value[i] = widen<kType>(static_cast<uint16_t>(chunk.word[i / 2] >> (i % 2 * 16)));
    return wide;
}

// Rounded to nearest even.
template <ElementType kType>
DEVICE Chunk narrow(const Floats8& wide) {
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float low = wide.value[2 * i], high = wide.value[2 * i + 1];
        chunk.word[i] = kType == ElementType::kBf16 ? pack_bf16x2(low, high) : pack_f16x2(low, high);
    }
    return chunk;
}

// ---- eight channels of float32 ----

DEVICE Floats8 load_floats8(const float* address) {
    Floats4 low = load_global(address), high = load_global(address + 4);
    return {{low.value[0], low.value[1], low.value[2], low.value[3], high.value[0], high.value[1], high.value[2],
             high.value[3]}};
}

DEVICE void store_floats8(float* address, const Floats8& values) {
    const float* v = values.value;
    store_global(address, Floats4{{v[0], v[1], v[2], v[3]}});
    store_global(address + 4, Floats4{{v[4], v[5], v[6], v[7]}});
}

// ---- arithmetic with the semantics of torch ----

// NaN comes out as NaN.
DEVICE float relu(float value) { return value < 0.0f ? 0.0f : value; }

// relu(z * scale + shift), not yet rounded.
DEVICE Floats8 scale_shift_relu(const Floats8& z, const Floats8& scale, const Floats8& shift) {
    Floats8 result;
#pragma unroll
    for (int i = 0; i < kChunkChannels; ++i) result.value[i] = relu(fmaf(z.value[i], scale.value[i], shift.value[i]));
    return result;
}
