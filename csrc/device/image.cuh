// What the stem needs besides primitives.cuh: images, whose pixels of three elements no wider access divides.
//
//   load_element(p)   one 16-bit element of global memory; the emulator counts its bytes
#pragma once
#include "device/gemm.cuh"

#ifndef __CUDACC__
#include "emulation/counters.hpp"
#endif

DEVICE uint16_t load_element(const uint16_t* address) {
#ifndef __CUDACC__
    emu::loaded_element_bytes += sizeof *address;
#endif
    return load_from<uint16_t>(address);
}
