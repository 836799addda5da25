#include "launch/cuda_error.h"
#include "launch/device.h"

namespace launch {

std::string device_problem() {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count == 0) error = cudaErrorNoDevice;
    if (error == cudaSuccess) return "";
    cudaGetLastError();
    return in_words(error);
}

}  // namespace launch
