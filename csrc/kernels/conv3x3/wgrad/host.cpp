// conv3x3_halo_wgrad, launcher and kernel, compiled for the CPU, as a C function for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv3x3/wgrad/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv3x3_halo_wgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer x,
                                              Pointer in_scale, Pointer in_shift, float packed_limit, Pointer partials,
                                              int splits, int element_type, int n, int h, int w, int c, int k,
                                              int stride, int seed, int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv3x3_halo_wgrad(g, z, a, b, c_, x, in_scale, in_shift, packed_limit, partials, splits, element_type,
                                   n, h, w, c, k, stride, 0);
    });
}

// Bytes of g, z and x that the last run's TMA loads took out of global memory.
extern "C" int64_t conv3x3_halo_wgrad_loaded_bytes() { return launch::loaded_bytes; }

// What the launcher says on a GPU of so many multiprocessors.
extern "C" int conv3x3_halo_wgrad_splits(int n, int h, int w, int c, int k, int stride, int multiprocessors) {
    launch::emulated_multiprocessors = multiprocessors;
    return static_cast<int>(launch::conv3x3_halo_wgrad_splits(n, h, w, c, k, stride));
}
