// conv1x1, launchers and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv1x1/forward/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv1x1_act(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, Pointer scale,
                                       Pointer shift, Pointer residual, Pointer y, Pointer products, Pointer arrivals,
                                       int splits, int element_type, int n, int h, int w, int c, int k, int stride,
                                       int relu, int weights_ready, int blocks, int seed, int workers) {
    return message_of(blocks, seed, workers, [&] {
        launch::conv1x1_act(x, weight, in_scale, in_shift, scale, shift, residual, y, products, arrivals, splits,
                            element_type, n, h, w, c, k, stride, relu, weights_ready, 0);
    });
}

extern "C" const char* run_conv1x1_stats(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, Pointer z,
                                         Pointer partials, int element_type, int n, int h, int w, int c, int k,
                                         int stride, int blocks, int seed, int workers) {
    return message_of(blocks, seed, workers, [&] {
        launch::conv1x1_stats(x, weight, in_scale, in_shift, z, partials, element_type, n, h, w, c, k, stride, 0);
    });
}

extern "C" int64_t conv1x1_partial_rows(int n, int h, int w, int stride) {
    return launch::conv1x1_partial_rows(n, h, w, stride);
}

extern "C" int64_t conv1x1_split_tiles(int n, int h, int w, int k, int stride) {
    return launch::conv1x1_split_tiles(n, h, w, k, stride);
}

extern "C" int64_t conv1x1_splits(int n, int h, int w, int c, int k, int stride, int blocks) {
    launch::emulated_multiprocessors = blocks;
    return launch::conv1x1_splits(n, h, w, c, k, stride);
}

// Bytes of x that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_loaded_bytes() { return launch::loaded_bytes; }
