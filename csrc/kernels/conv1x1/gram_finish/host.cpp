// conv1x1_gram_finish, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv1x1/gram_finish/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv1x1_gram_finish(Pointer t, Pointer z, Pointer in_scale, Pointer in_shift, Pointer center,
                                               Pointer quadratic, Pointer constant, Pointer below_mean, Pointer g,
                                               Pointer partials, int rows, int element_type, int n, int h, int w, int c,
                                               int seed, int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv1x1_gram_finish(t, z, in_scale, in_shift, center, quadratic, constant, below_mean, g, partials,
                                    rows, element_type, n, h, w, c, 0);
    });
}

extern "C" int64_t conv1x1_gram_finish_rows(int n, int h, int w, int c, int blocks) {
    launch::emulated_multiprocessors = blocks;
    return launch::conv1x1_gram_finish_rows(n, h, w, c);
}

// Bytes of z and t that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_gram_finish_loaded_bytes() { return launch::loaded_bytes; }
