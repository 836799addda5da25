// conv3x3_halo_dgrad, launcher and kernel, compiled for the CPU, as a C function for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv3x3/dgrad/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv3x3_halo_dgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight,
                                              Pointer below_z, Pointer below_scale, Pointer below_shift,
                                              Pointer below_mean, Pointer below_out, Pointer skip, Pointer skip_out,
                                              Pointer dx, Pointer partials, int partial_rows, int element_type, int n,
                                              int h, int w, int c, int k, int stride, int blocks, int seed,
                                              int workers) {
    return message_of(blocks, seed, workers, [&] {
        launch::conv3x3_halo_dgrad(g, z, a, b, c_, weight, below_z, below_scale, below_shift, below_mean, below_out,
                                   skip, skip_out, dx, partials, partial_rows, element_type, n, h, w, c, k, stride, 0);
    });
}

// Bytes of g and z that the last run's TMA loads took out of global memory.
extern "C" int64_t conv3x3_halo_dgrad_loaded_bytes() { return launch::loaded_bytes; }
