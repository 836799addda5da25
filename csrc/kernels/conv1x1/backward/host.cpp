// conv1x1_backward, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/conv1x1/backward/launch.cu"

using launch::Pointer;

extern "C" const char* run_conv1x1_backward(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight,
                                            Pointer x, bool rectified, Pointer skip, Pointer skip_out, Pointer dx,
                                            Pointer partials, int rows, int element_type, int n, int h, int w, int c,
                                            int k, int seed, int workers) {
    return message_of(1, seed, workers, [&] {
        launch::conv1x1_backward(g, z, a, b, c_, weight, x, rectified, skip, skip_out, dx, partials, rows, element_type,
                                 n, h, w, c, k, 0);
    });
}

// What the launcher says on a GPU of so many multiprocessors.
extern "C" int64_t conv1x1_backward_rows(int n, int h, int w, int c, int k, int multiprocessors) {
    launch::emulated_multiprocessors = multiprocessors;
    return launch::conv1x1_backward_rows(n, h, w, c, k);
}

// Bytes of all maps but the weights that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_backward_loaded_bytes() { return launch::loaded_bytes; }
