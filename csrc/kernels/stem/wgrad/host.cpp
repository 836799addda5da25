// stem_wgrad, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/stem/wgrad/launch.cu"

using launch::Pointer;

extern "C" const char* run_stem_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c, Pointer x,
                                      Pointer partials, int splits, int element_type, int n, int h, int w, int seed,
                                      int workers) {
    emu::loaded_element_bytes = 0;
    return message_of(1, seed, workers,
                      [&] { launch::stem_wgrad(g, z, a, b, c, x, partials, splits, element_type, n, h, w, 0); });
}

// What the launcher says on a GPU of so many multiprocessors.
extern "C" int64_t stem_wgrad_splits(int n, int h, int w, int multiprocessors) {
    launch::emulated_multiprocessors = multiprocessors;
    return launch::stem_wgrad_splits(n, h, w);
}

// Bytes of g and z, and of x, that the last run took out of global memory.
extern "C" int64_t stem_wgrad_loaded_bytes() { return launch::loaded_bytes; }
extern "C" int64_t stem_wgrad_image_bytes() { return emu::loaded_element_bytes; }
