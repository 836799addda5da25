// conv1x1_wgrad, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv1x1/wgrad/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv1x1_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer x,
                                         Pointer in_scale, Pointer in_shift, Pointer partials, int splits,
                                         int element_type, int n, int h, int w, int c, int k, int stride, int seed,
                                         int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv1x1_wgrad(g, z, a, b, c_, x, in_scale, in_shift, partials, splits, element_type, n, h, w, c, k,
                              stride, 0);
    });
}

// What the launcher says on a GPU of so many multiprocessors.
extern "C" int64_t conv1x1_wgrad_splits(int n, int h, int w, int c, int k, int stride, int multiprocessors) {
    launch::emulated_multiprocessors = multiprocessors;
    return launch::conv1x1_wgrad_splits(n, h, w, c, k, stride);
}

// Bytes of g, z and x that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_wgrad_loaded_bytes() { return launch::loaded_bytes; }
