// conv1x1_gram, launcher and kernels, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv1x1/gram/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv1x1_gram(Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer total,
                                        Pointer gram, Pointer partials, int rows, int element_type, int n, int h, int w,
                                        int c, int stride, int seed, int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv1x1_gram(z, in_scale, in_shift, center, total, gram, partials, rows, element_type, n, h, w, c,
                             stride, 0);
    });
}

extern "C" const char* run_conv1x1_gram_exact(Pointer z, Pointer in_scale, Pointer in_shift, Pointer center,
                                              Pointer flag, Pointer partials, int rows, int element_type, int n, int h,
                                              int w, int c, int stride, int seed, int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv1x1_gram_exact(z, in_scale, in_shift, center, flag, partials, rows, element_type, n, h, w, c,
                                   stride, 0);
    });
}

extern "C" int64_t conv1x1_gram_exact_rows(int n, int h, int w, int c, int stride) {
    return launch::conv1x1_gram_exact_rows(n, h, w, c, stride);
}

extern "C" int64_t conv1x1_gram_rows(int n, int h, int w, int c, int stride, int blocks) {
    launch::emulated_multiprocessors = blocks;
    return launch::conv1x1_gram_rows(n, h, w, c, stride);
}

// Bytes of z that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_gram_loaded_bytes() { return launch::loaded_bytes; }
