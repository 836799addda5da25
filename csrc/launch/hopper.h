// What the launchers of the kernels for compute capability 9.0 ask of the GPU, or of the emulator in its place.
#pragma once
#include <atomic>

#include "launch/tensor_map.h"

namespace launch {

#ifdef __CUDACC__

inline int device_attribute(const Call& call, int device, cudaDeviceAttr which) {
    int value = 0;
    require_success(call.name(), cudaDeviceGetAttribute(&value, which, device));
    return value;
}

inline int multiprocessors(const Call& call) {
    return remembered(call.name(), nullptr, 0, [&](int device) {
        int major = device_attribute(call, device, cudaDevAttrComputeCapabilityMajor),
            minor = device_attribute(call, device, cudaDevAttrComputeCapabilityMinor);
        call.require(major == 9 && minor == 0, "this GPU's compute capability is " + std::to_string(major) + "." +
                                                   std::to_string(minor) + ", and the kernel's instructions are " +
                                                   "those of 9.0 alone");
        return device_attribute(call, device, cudaDevAttrMultiProcessorCount);
    });
}

template <class Parameters>
void allow_shared_memory(const Call& call, void (*kernel)(Parameters), int bytes) {
    remembered(call.name(), reinterpret_cast<const void*>(kernel), bytes, [&](int) {
        require_success(call.name(), cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
        return bytes;
    });
}

// How many clusters of so many blocks run at the same time.
template <class Parameters>
int resident_clusters(const Call& call, void (*kernel)(Parameters), int threads, int shared_bytes, int cluster) {
    int blocks = multiprocessors(call);
    if (cluster == 1) return blocks;
    allow_shared_memory(call, kernel, shared_bytes);
    return remembered(call.name(), reinterpret_cast<const void*>(kernel), cluster, [&](int) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
        cudaLaunchConfig_t config = {};
        config.gridDim = dim3(static_cast<unsigned>(cluster));
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
        config.attrs = &attribute;
        config.numAttrs = 1;
        int clusters = 0;
        require_success(call.name(), cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
        call.require(clusters > 0, "this GPU, or the part of it in use, holds no cluster of " +
                                       std::to_string(cluster) + " blocks; a whole one does");
        return clusters;
    });
}

inline void count_loads(TensorMap&) {}
inline void promise_constant(TensorMap&, bool) {}

#else

inline int emulated_multiprocessors = 2;
inline std::atomic<int64_t> loaded_bytes;  // of global memory, by TMA, through the maps that count

inline int multiprocessors(const Call&) { return emulated_multiprocessors; }

template <class Parameters>
void allow_shared_memory(const Call&, void (*)(Parameters), int) {}

template <class Parameters>
int resident_clusters(const Call&, void (*)(Parameters), int, int, int cluster) {
    return emulated_multiprocessors / cluster;
}

inline void count_loads(TensorMap& map) { map.loaded_bytes = &loaded_bytes; }

// To the emulator: what the map reads may be loaded before wait_for_previous_grid.
inline void promise_constant(TensorMap& map, bool is_constant) { map.constant = is_constant; }

#endif

}  // namespace launch
