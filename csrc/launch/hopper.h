// What the launchers of the kernels for compute capability 9.0 ask of the GPU, or of the emulator in its place.
#pragma once
#include <atomic>

#include "launch/tensor_map.h"

namespace launch {

#ifdef __CUDACC__

inline int device_attribute(const Call& call, cudaDeviceAttr which) {
    int device = 0, value = 0;
    require_success(call.name(), cudaGetDevice(&device));
    require_success(call.name(), cudaDeviceGetAttribute(&value, which, device));
    return value;
}

inline int multiprocessors(const Call& call) {
    int major = device_attribute(call, cudaDevAttrComputeCapabilityMajor),
        minor = device_attribute(call, cudaDevAttrComputeCapabilityMinor);
    call.require(major == 9 && minor == 0, "this GPU's compute capability is " + std::to_string(major) + "." +
                                               std::to_string(minor) + ", and the kernel's instructions are those of " +
                                               "9.0 alone");
    return device_attribute(call, cudaDevAttrMultiProcessorCount);
}

template <class Parameters>
void allow_shared_memory(const Call& call, void (*kernel)(Parameters), int bytes) {
    require_success(call.name(), cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

inline void count_loads(TensorMap&) {}

#else

inline int emulated_multiprocessors = 2;
inline std::atomic<int64_t> loaded_bytes;  // of global memory, by TMA, through the maps that count

inline int multiprocessors(const Call&) { return emulated_multiprocessors; }

template <class Parameters>
void allow_shared_memory(const Call&, void (*)(Parameters), int) {}

inline void count_loads(TensorMap& map) { map.loaded_bytes = &loaded_bytes; }

#endif

}  // namespace launch
