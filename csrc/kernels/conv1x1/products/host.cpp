// conv1x1_products, launcher and kernels, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv1x1/products/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv1x1_products(Pointer grad, Pointer out, Pointer z, Pointer in_scale, Pointer in_shift,
                                            Pointer center, Pointer weight, Pointer t, Pointer products,
                                            Pointer partials, int rows, int element_type, int n, int h, int w, int c,
                                            int k, int stride, int seed, int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv1x1_products(grad, out, z, in_scale, in_shift, center, weight, t, products, partials, rows,
                                 element_type, n, h, w, c, k, stride, 0);
    });
}

extern "C" int64_t conv1x1_products_rows(int n, int h, int w, int c, int k, int stride, int blocks) {
    launch::emulated_multiprocessors = blocks;
    return launch::conv1x1_products_rows(n, h, w, c, k, stride);
}

// Bytes of grad that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_products_loaded_bytes() { return launch::loaded_bytes; }
