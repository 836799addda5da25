// The shared-memory swizzles of TMA and wgmma: 16-byte chunks permuted by a XOR of address bits.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

enum class Swizzle : uint32_t { kNone = 0, k128B = 1, k64B = 2, k32B = 3 };  // the descriptor's encoding

// Bytes of one row of the pattern; eight rows make one atom.
HOST_DEVICE constexpr uint32_t swizzle_width(Swizzle mode) {
    switch (mode) {
        case Swizzle::k128B:
            return 128;
        case Swizzle::k64B:
            return 64;
        case Swizzle::k32B:
            return 32;
        default:
            return 16;
    }
}

// XOR address bits [7, 7+b) into bits [4, 4+b), b = 3, 2, 1, 0. The bits are those of the absolute shared
// address; `base_offset` moves the start of the pattern off the 1024-byte boundary.
HOST_DEVICE constexpr uint32_t swizzled(Swizzle mode, uint32_t address, uint32_t base_offset = 0) {
    uint32_t chunk_mask = swizzle_width(mode) / 16 - 1;
    return address ^ ((((address >> 7) - base_offset) & chunk_mask) << 4);
}
