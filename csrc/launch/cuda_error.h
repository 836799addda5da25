// The CUDA runtime's errors in this package's words.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace launch {

inline std::string in_words(cudaError_t error) {
    int version = 0;
    switch (error) {
        case cudaErrorInsufficientDriver:
            cudaRuntimeGetVersion(&version);
            return "there is no NVIDIA driver on this machine, or one that is older than CUDA " +
                   std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
                   ", which the extension was compiled with; run where there is a GPU and its driver";
        case cudaErrorNoDevice:
            return "the NVIDIA driver sees no GPU; run where there is one, or look at CUDA_VISIBLE_DEVICES";
        case cudaErrorNoKernelImageForDevice:
            return "the extension was compiled for " FUSED_RESNET_ARCHS
                   ", and not for this GPU; name its architecture in FUSED_RESNET_CUDA_ARCHS and install again";
        default:
            return std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
    }
}

inline void require_success(const std::string& call, cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // said here: the next call to look must not find it again
    throw std::runtime_error(call + " could not be launched: " + in_words(error));
}

}  // namespace launch
