// conv1x1_products, launcher and kernels, compiled for the CPU, as C functions for ctypes.
#include "launch/conv1x1_products.cu"

using launch::Pointer;

// Null, or what went wrong: "ValueError: ..." for arguments that the launcher refuses, "RuntimeError: ..." for the
// rest.
extern "C" const char* run_conv1x1_products(Pointer grad, Pointer out, Pointer z, Pointer in_scale, Pointer in_shift,
                                            Pointer center, Pointer weight, Pointer t, Pointer products,
                                            Pointer partials, int rows, int element_type, int n, int h, int w, int c,
                                            int k, int stride, int seed, int workers) {
    static thread_local std::string message;
    launch::schedule = {seed, workers};
    launch::loaded_bytes = 0;
    try {
        launch::conv1x1_products(grad, out, z, in_scale, in_shift, center, weight, t, products, partials, rows,
                                 element_type, n, h, w, c, k, stride, 0);
        return nullptr;
    } catch (const std::invalid_argument& error) {
        message = std::string("ValueError: ") + error.what();
    } catch (const std::exception& error) {
        message = std::string("RuntimeError: ") + error.what();
    }
    return message.c_str();
}

extern "C" int64_t conv1x1_products_rows(int n, int h, int w, int c, int k, int stride, int blocks) {
    launch::emulated_multiprocessors = blocks;
    return launch::conv1x1_products_rows(n, h, w, c, k, stride);
}

// Bytes of grad that the last run's TMA loads took out of global memory.
extern "C" int64_t conv1x1_products_loaded_bytes() { return launch::loaded_bytes; }
