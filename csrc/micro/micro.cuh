// What the micro-tests share: checked calls, the one line of JSON, tensor maps, and the few PTX instructions they need.
//
// A micro-test asks the hardware one question that the PTX manual leaves open and that a design rests on.  It stands
// apart from the kernels' own primitives on purpose: it must still tell the truth when those are wrong.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#ifndef MICRO_NAME
#error "compile with -DMICRO_NAME=... : the name in the line of JSON"
#endif
#define MICRO_TEXT_OF(name) #name
#define MICRO_TEXT(name) MICRO_TEXT_OF(name)

// Prints {"name", "answer", "detail"} and ends the program: status 0 for a yes or a no, 1 for an error.
[[noreturn]] inline void finish(const char* answer, const char* detail, ...) {
    char text[3072];
    va_list arguments;
    va_start(arguments, detail);
    std::vsnprintf(text, sizeof(text), detail, arguments);
    va_end(arguments);
    std::string escaped;
    for (const char* c = text; *c; ++c) {
        if (*c == '"' || *c == '\\') escaped += '\\';
        escaped += *c;
    }
    std::printf("{\"name\": \"%s\", \"answer\": \"%s\", \"detail\": \"%s\"}\n", MICRO_TEXT(MICRO_NAME), answer,
                escaped.c_str());
    std::exit(answer == std::string("error"));
}

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) finish("error", "%s: %s", what, cudaGetErrorString(status));
}
#define CHECK(call) check(call, #call)

// Ends with an error where there is no Hopper GPU to ask.
inline cudaDeviceProp require_hopper() {
    cudaDeviceProp device;
    CHECK(cudaGetDeviceProperties(&device, 0));
    if (device.major != 9) finish("error", "the question is about sm_90, this is sm_%d%d", device.major, device.minor);
    return device;
}

inline void launched_well() {
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
}

// Host memory that kernels may write to: a few kilobytes of answers.
template <class T>
T* answers(size_t count) {
    T* memory;
    CHECK(cudaMallocHost(&memory, count * sizeof(T)));
    return memory;
}

template <class T>
T* on_device(const T* values, size_t count) {
    T* memory;
    CHECK(cudaMalloc(&memory, count * sizeof(T)));
    CHECK(cudaMemcpy(memory, values, count * sizeof(T), cudaMemcpyHostToDevice));
    return memory;
}

// ---- tensor maps ----

using Encode = decltype(&cuTensorMapEncodeTiled);

inline Encode tensor_map_encoder() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    if (!function || found != cudaDriverEntryPointSuccess) finish("error", "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(function);
}

// A map of `rank` dimensions, the innermost first, of 16-bit elements; `strides` are bytes of the dimensions after the
// innermost.  Returns what the driver says.
template <int rank>
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, void* memory, const cuuint64_t (&extents)[rank],
                const cuuint64_t (&strides)[rank - 1], const cuuint32_t (&box)[rank],
                CUtensorMapFloatOOBfill fill = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE) {
    cuuint32_t steps[rank];
    for (cuuint32_t& step : steps) step = 1;
    return tensor_map_encoder()(map, type, rank, memory, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE, fill);
}

inline void encoded_well(CUresult result) {
    if (result != CUDA_SUCCESS) finish("error", "cuTensorMapEncodeTiled: error %d", int(result));
}

// ---- device ----

#define DEVICE __device__ __forceinline__

DEVICE uint32_t shared_address(const void* memory) { return uint32_t(__cvta_generic_to_shared(memory)); }

DEVICE void mbarrier_init(uint32_t barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n fence.mbarrier_init.release.cluster;" ::"r"(barrier)
                 : "memory");
}
DEVICE void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "retry:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra retry;\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

DEVICE void load_2d(uint32_t target, const CUtensorMap& map, uint32_t barrier, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(target),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
        : "memory");
}
