// stem, launchers and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/stem/forward/launch.cu"

using launch::Pointer;

extern "C" const char* run_stem_act(Pointer x, Pointer weight, Pointer scale, Pointer shift, Pointer residual,
                                    Pointer y, int element_type, int n, int h, int w, int relu, int blocks, int seed,
                                    int workers) {
    emu::loaded_element_bytes = 0;
    return message_of(blocks, seed, workers,
                      [&] { launch::stem_act(x, weight, scale, shift, residual, y, element_type, n, h, w, relu, 0); });
}

extern "C" const char* run_stem_stats(Pointer x, Pointer weight, Pointer z, Pointer partials, int element_type, int n,
                                      int h, int w, int blocks, int seed, int workers) {
    emu::loaded_element_bytes = 0;
    return message_of(blocks, seed, workers,
                      [&] { launch::stem_stats(x, weight, z, partials, element_type, n, h, w, 0); });
}

extern "C" int64_t stem_partial_rows(int n, int h, int w) { return launch::stem_partial_rows(n, h, w); }

// Bytes of x and of the weight that the last run took out of global memory.
extern "C" int64_t stem_loaded_bytes() { return emu::loaded_element_bytes; }
