// What the GEMM kernels need besides primitives.cuh and global.cuh.
//
//   store_matrix_x4(a, r0..r3)      stmatrix: lane 8 * i + r gives the address of row r of the 8x8 matrix i
//   pack<type>(low, high)           two float32, rounded to nearest even
//   pack_relu<type>(low, high)      the same of max(v, 0); NaN comes out as NaN
//   load_pair(p)                    two neighbouring float32 of global memory
//   load_uncached(p)                four float32 that other CTAs have written during this kernel
//   settled(d)                      after wgmma_wait: the compiler may not have read d before
//   release(barrier)                this warp's arrival: it has read what the barrier guards
#pragma once
#include "device/global.cuh"

struct alignas(8) Floats2 {
    float value[2];
};

DEVICE void release(SmemAddress barrier) {
    if (lane_index() == 0) mbarrier_arrive(barrier);
}

#ifdef __CUDACC__

DEVICE void store_matrix_x4(SmemAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r0), "r"(r1),
                 "r"(r2), "r"(r3)
                 : "memory");
}

template <ElementType kType>
DEVICE uint32_t pack_relu(float low, float high) {
    uint32_t result;
    if constexpr (kType == ElementType::kBf16)
        asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    else
        asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

DEVICE Floats4 load_uncached(const float* address) {
    Floats4 result;
    float (&v)[4] = result.value;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "l"(address)
                 : "memory");
    return result;
}

template <int kCount>
DEVICE void settled(float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#else

DEVICE void store_matrix_x4(SmemAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    auto& lanes = cta().exchange(std::array{row});
    int lane = lane_index();
    const uint32_t r[4] = {r0, r1, r2, r3};
    for (int i = 0; i < 4; ++i) store_shared(lanes[8 * i + lane / 4][0] + lane % 4 * 4, r[i]);
}

template <ElementType kType>
DEVICE uint32_t pack_relu(float low, float high) {
    auto positive = [](float value) { return value < 0.0f ? 0.0f : value; };
    return kType == ElementType::kBf16 ? pack_bf16x2(positive(low), positive(high))
                                       : pack_f16x2(positive(low), positive(high));
}

DEVICE Floats4 load_uncached(const float* address) { return load_from<Floats4>(address); }

template <int kCount>
DEVICE void settled(float (&)[kCount]) {}

#endif

DEVICE Floats2 load_pair(const float* address) { return load_from<Floats2>(address); }

template <ElementType kType>
DEVICE uint32_t pack(float low, float high) {
    return kType == ElementType::kBf16 ? pack_bf16x2(low, high) : pack_f16x2(low, high);
}

// The two halves of a packed pair.
template <ElementType kType>
DEVICE Floats2 unpack(uint32_t pair) {
    return {{widen<kType>(static_cast<uint16_t>(pair)), widen<kType>(static_cast<uint16_t>(pair >> 16))}};
}
