// What bottleneck_inference needs besides primitives.cuh and gemm.cuh.
//
//   store_matrix_x2_trans(a, r0, r1)      stmatrix, transposed: lane 8 * i + r gives row r of matrix i; lanes 16.. none
//   tma_store_output_4d(map, src, c0..c3) tma_store_4d; the emulator counts the bytes that reach global memory
//   forgotten(value)                      the same value; what is computed of it is not kept in registers between tiles
//   wgmma_ss                              of the widths that the pixels of a bottleneck's tiles make
#pragma once
#include "device/gemm.cuh"

#ifdef __CUDACC__

#include "device/ptx/bottleneck_wgmma.cuh"

DEVICE void store_matrix_x2_trans(SmemAddress row, uint32_t r0, uint32_t r1) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(r0), "r"(r1)
                 : "memory");
}

DEVICE void tma_store_output_4d(const TensorMap& map, SmemAddress source, int c0, int c1, int c2, int c3) {
    tma_store_4d(map, source, c0, c1, c2, c3);
}

DEVICE int forgotten(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

#else

#include "emulation/counters.hpp"

DEVICE void store_matrix_x2_trans(SmemAddress row, uint32_t r0, uint32_t r1) {
    auto& lanes = cta().exchange(std::array{row});
    int lane = lane_index();
    const uint32_t r[2] = {r0, r1};
    for (int i = 0; i < 2; ++i)
        for (int half = 0; half < 2; ++half)
            store_shared(lanes[8 * i + lane % 4 * 2 + half][0] + lane / 4 * 2, uint16_t(r[i] >> 16 * half));
}

DEVICE void tma_store_output_4d(const TensorMap& map, SmemAddress source, int c0, int c1, int c2, int c3) {
    emu::for_each_row(map, source, {c0, c1, c2, c3, 0}, [&](uint32_t, const uint8_t* global) {
        for (int i = 0; global && i < map.box[0]; ++i)
            if (emu::inside(map, 0, c0 + i)) emu::stored_output_bytes += map.kElementBytes;
    });
    tma_store_4d(map, source, c0, c1, c2, c3);
}

DEVICE int forgotten(int value) { return value; }

#endif
