// bottleneck_inference, launcher and kernel, compiled for the CPU, as C functions for ctypes.
#include "launch/bottleneck_inference.cu"

using launch::Pointer;

// Null, or what went wrong: "ValueError: ..." for arguments that the launcher refuses, "RuntimeError: ..." for the
// rest.
extern "C" const char* run_bottleneck_inference(Pointer x, Pointer weight1, Pointer scale1, Pointer shift1,
                                                Pointer weight2, Pointer scale2, Pointer shift2, Pointer weight3,
                                                Pointer scale3, Pointer shift3, Pointer downsample,
                                                Pointer downsample_scale, Pointer downsample_shift, Pointer y,
                                                int element_type, int n, int h, int w, int c_in, int c, int stride,
                                                int blocks, int seed, int workers) {
    static thread_local std::string message;
    launch::schedule = {seed, workers};
    launch::emulated_multiprocessors = blocks;
    launch::loaded_bytes = 0;
    emu::stored_output_bytes = 0;
    try {
        launch::bottleneck_inference(x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3,
                                     downsample, downsample_scale, downsample_shift, y, element_type, n, h, w, c_in, c,
                                     stride, 0);
        return nullptr;
    } catch (const std::invalid_argument& error) {
        message = std::string("ValueError: ") + error.what();
    } catch (const std::exception& error) {
        message = std::string("RuntimeError: ") + error.what();
    }
    return message.c_str();
}

// Bytes of x that the last run's TMA loads took out of global memory, and of y that its TMA stores wrote.
extern "C" int64_t bottleneck_inference_loaded_bytes() { return launch::loaded_bytes; }
extern "C" int64_t bottleneck_inference_stored_bytes() { return emu::stored_output_bytes; }
