// What every launcher does: say no in words, and launch; on a GPU, or, compiled by the host's compiler, in the
// emulator.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "device/primitives.cuh"
#include "launch/launch.h"

#ifdef __CUDACC__
#include "launch/remembered.h"
#endif

namespace launch {

constexpr int64_t kMaxElements = int64_t{1} << 31;
constexpr uint32_t kMaxSharedBytes = 227 * 1024;  // of a block, on sm_90

#ifndef __CUDACC__
struct Schedule {
    int seed = 0;
    int workers = 1;
};
inline Schedule schedule;  // of the emulator
#endif

// One call of a kernel, as errors name it: "bn_add_act of (2, 9, 11, 24)".
class Call {
  public:
    Call(const char* kernel, std::initializer_list<int64_t> shape) : name_(kernel) {
        const char* separator = " of (";
        for (int64_t extent : shape) {
            name_ += separator + std::to_string(extent);
            separator = ", ";
        }
        name_ += ")";
    }

    const std::string& name() const { return name_; }

    void require(bool holds, const std::string& otherwise) const {
        if (!holds) throw std::invalid_argument(name_ + ": " + otherwise);
    }

    // The address of `what`, which a kernel reads in accesses of 16 bytes.
    template <class T>
    T* aligned(const char* what, Pointer address) const {
        require(address != 0, std::string(what) + " is missing");
        require(address % 16 == 0, std::string(what) +
                                       " begins at an address that is no multiple of 16 bytes, which the" +
                                       " kernel's accesses are; pass a tensor that was not cut out of another one");
        return reinterpret_cast<T*>(address);
    }
    template <class T>
    T* aligned_or_null(const char* what, Pointer address) const {
        return address == 0 ? nullptr : aligned<T>(what, address);
    }

    // A map (n, h, w, channels) that 32-bit offsets reach and 16-byte accesses divide.
    void map(const char* what, int64_t n, int64_t h, int64_t w, int64_t channels) const {
        require(n > 0 && h > 0 && w > 0 && channels > 0, std::string(what) + " has an extent that is not positive");
        require(channels % 8 == 0, std::string(what) + " has " + std::to_string(channels) +
                                       " channels, and the kernel takes multiples of 8");
        require(n < kMaxElements / h && n * h < kMaxElements / w && n * h * w < kMaxElements / channels,
                std::string(what) + " has 2^31 elements or more, and the kernel's offsets are 32-bit; split the batch");
    }

    void rows(const char* what, int64_t rows, int64_t width) const {
        require(rows > 0 && rows < kMaxElements / width, std::string(what) + " must have at least one row and fewer" +
                                                             " than 2^31 elements, got " + std::to_string(rows) +
                                                             " rows");
    }

  private:
    std::string name_;
};

// An extent that a check has found to be below 2^31.
constexpr int as_int(int64_t extent) { return static_cast<int>(extent); }

// Calls `choose` with the element type as a constant.
template <class Choose>
void with_element_type(const Call& call, int element_type, Choose choose) {
    if (element_type == static_cast<int>(ElementType::kBf16)) return choose.template operator()<ElementType::kBf16>();
    if (element_type == static_cast<int>(ElementType::kF16)) return choose.template operator()<ElementType::kF16>();
    call.require(false, "element type " + std::to_string(element_type) + " is neither bfloat16 (0) nor float16 (1)");
}

namespace details {

#ifdef __CUDACC__

// Code that was compiled for less than 9.0 has an empty wait_for_previous_grid, whatever GPU it runs on.
template <class Parameters>
bool can_wait(const Call& call, void (*kernel)(Parameters)) {
    return remembered(call.name(), reinterpret_cast<const void*>(kernel), 0, [&](int) {
        cudaFuncAttributes attributes;
        require_success(call.name(), cudaFuncGetAttributes(&attributes, kernel));
        return int{attributes.ptxVersion >= 90};
    });
}

#else

template <class Parameters>
bool can_wait(const Call&, void (*)(Parameters)) {
    return true;
}

#endif

template <class Parameters>
void run(const Call& call, void (*kernel)(Parameters), const Parameters& parameters, int blocks, int threads,
         uint32_t shared_bytes, Pointer stream, bool dependent, int cluster) {
    call.require(blocks % cluster == 0,
                 std::to_string(blocks) + " blocks do not make clusters of " + std::to_string(cluster));
    call.require(shared_bytes <= kMaxSharedBytes,
                 "its " + std::to_string(shared_bytes) + " bytes of shared memory are more than a block has, 227 KB");
#ifdef __CUDACC__
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (dependent) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    require_success(call.name(), cudaLaunchKernelEx(&config, kernel, parameters));
#else
    static_cast<void>(call), static_cast<void>(stream);
    emu::launch(
        {blocks, threads, shared_bytes, static_cast<unsigned>(schedule.seed), schedule.workers, dependent, cluster},
        [&] { kernel(parameters); });
#endif
}

}  // namespace details

template <class Parameters>
void run(const Call& call, void (*kernel)(Parameters), const Parameters& parameters, int blocks, int threads,
         uint32_t shared_bytes, Pointer stream) {
    details::run<Parameters>(call, kernel, parameters, blocks, threads, shared_bytes, stream, false, 1);
}

// For kernels that call wait_for_previous_grid, and no others: as soon as there is room, the grid starts beside the one
// before it in the stream (programmatic dependent launch).
template <class Parameters>
void run_dependent(const Call& call, void (*kernel)(Parameters), const Parameters& parameters, int blocks, int threads,
                   uint32_t shared_bytes, Pointer stream) {
    details::run<Parameters>(call, kernel, parameters, blocks, threads, shared_bytes, stream,
                             details::can_wait(call, kernel), 1);
}

// In clusters of so many neighbouring blocks, which run together and reach each other's shared memory.
template <class Parameters>
void run_clusters(const Call& call, void (*kernel)(Parameters), const Parameters& parameters, int blocks, int threads,
                  uint32_t shared_bytes, Pointer stream, int cluster) {
    details::run<Parameters>(call, kernel, parameters, blocks, threads, shared_bytes, stream, false, cluster);
}

}  // namespace launch
