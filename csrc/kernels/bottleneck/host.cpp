// bottleneck_inference, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "emulation/c_function.hpp"
#include "kernels/bottleneck/launch.cu"

using launch::Pointer;

extern "C" const char* run_bottleneck_inference(Pointer x, Pointer weight1, Pointer scale1, Pointer shift1,
                                                Pointer weight2, Pointer scale2, Pointer shift2, Pointer weight3,
                                                Pointer scale3, Pointer shift3, Pointer downsample,
                                                Pointer downsample_scale, Pointer downsample_shift, Pointer y,
                                                int element_type, int n, int h, int w, int c_in, int c, int stride,
                                                int weights_ready, int blocks, int seed, int workers) {
    emu::stored_output_bytes = 0;
    return message_of(blocks, seed, workers, [&] {
        launch::bottleneck_inference(x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3,
                                     downsample, downsample_scale, downsample_shift, y, element_type, n, h, w, c_in, c,
                                     stride, weights_ready, 0);
    });
}

// Bytes of x that the last run's TMA loads took out of global memory, and of y that its TMA stores wrote.
extern "C" int64_t bottleneck_inference_loaded_bytes() { return launch::loaded_bytes; }
extern "C" int64_t bottleneck_inference_stored_bytes() { return emu::stored_output_bytes; }
