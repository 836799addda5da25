// conv3x3_halo, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv3x3/forward/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv3x3_halo_act(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift,
                                            float packed_limit, Pointer scale, Pointer shift, Pointer residual,
                                            Pointer y, int element_type, int n, int h, int w, int c, int k, int stride,
                                            int relu, int weights_ready, int blocks, int seed, int workers) {
    return message_of(blocks, seed, workers, [&] {
        launch::conv3x3_halo_act(x, weight, in_scale, in_shift, packed_limit, scale, shift, residual, y, element_type,
                                 n, h, w, c, k, stride, relu, weights_ready, 0);
    });
}

extern "C" const char* run_conv3x3_halo_stats(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift,
                                              float packed_limit, Pointer z, Pointer partials, int partial_rows,
                                              int element_type, int n, int h, int w, int c, int k, int stride,
                                              int blocks, int seed, int workers) {
    return message_of(blocks, seed, workers, [&] {
        launch::conv3x3_halo_stats(x, weight, in_scale, in_shift, packed_limit, z, partials, partial_rows, element_type,
                                   n, h, w, c, k, stride, 0);
    });
}

// Bytes of x that the last run's TMA loads took out of global memory.
extern "C" int64_t conv3x3_halo_loaded_bytes() { return launch::loaded_bytes; }
