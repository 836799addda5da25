// conv3x3_halo_split, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv3x3/split/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv3x3_halo_split_act(Pointer x, Pointer weight, Pointer scale, Pointer shift,
                                                  Pointer residual, Pointer y, Pointer products, Pointer arrivals,
                                                  int splits, int element_type, int n, int h, int w, int c, int k,
                                                  int stride, int relu, int weights_ready, int blocks, int seed,
                                                  int workers) {
    return message_of(blocks, seed, workers, [&] {
        launch::conv3x3_halo_split_act(x, weight, scale, shift, residual, y, products, arrivals, splits, element_type,
                                       n, h, w, c, k, stride, relu, weights_ready, 0);
    });
}

extern "C" int64_t conv3x3_halo_split_tiles(int n, int h, int w, int c, int k, int stride) {
    return launch::conv3x3_halo_split_tiles(n, h, w, c, k, stride);
}

extern "C" int64_t conv3x3_halo_splits(int n, int h, int w, int c, int k, int stride, int blocks) {
    launch::emulated_multiprocessors = blocks;
    return launch::conv3x3_halo_splits(n, h, w, c, k, stride);
}

// Bytes of x that the last run's TMA loads took out of global memory.
extern "C" int64_t conv3x3_halo_split_loaded_bytes() { return launch::loaded_bytes; }
