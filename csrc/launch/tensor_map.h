// Tensor maps for TMA: the driver's on a GPU, the emulator's elsewhere.
#pragma once
#include "device/map_shape.h"
#include "launch/check.h"

#ifdef __CUDACC__
#include <cudaTypedefs.h>
#endif

namespace launch {

#ifdef __CUDACC__

// cuTensorMapEncodeTiled of the driver that is there; it is asked for at the first use, so that nothing links to it.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder(const Call& call) {
    static PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
    if (encode) return encode;
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    require_success(call.name(), cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                                  cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess || !found)
        throw std::runtime_error(call.name() +
                                 ": the NVIDIA driver has no cuTensorMapEncodeTiled; CUDA 12 brought it, "
                                 "install a newer driver");
    return encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

inline TensorMap tensor_map(const Call& call, const char* what, const uint16_t* base, const MapShape& shape,
                            ElementType type) {
    cuuint64_t size[4], stride_bytes[3];
    cuuint32_t box[4], element_stride[4];
    for (int d = 0; d < 4; ++d) {
        size[d] = static_cast<cuuint64_t>(shape.size[d]);
        box[d] = static_cast<cuuint32_t>(shape.box[d]);
        element_stride[d] = static_cast<cuuint32_t>(shape.element_stride[d]);
        if (d > 0) stride_bytes[d - 1] = size[d - 1] * (d > 1 ? stride_bytes[d - 2] : sizeof(uint16_t));
        if (d > 0 && shape.pitch[d]) stride_bytes[d - 1] = static_cast<cuuint64_t>(shape.pitch[d]) * sizeof(uint16_t);
    }
    TensorMap map;
    CUresult result = tensor_map_encoder(call)(
        &map, type == ElementType::kBf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
        const_cast<uint16_t*>(base), size, stride_bytes, box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        shape.nan_fill ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw std::runtime_error(call.name() + ": the driver refuses the tensor map of " + what + ", CUresult " +
                                 std::to_string(static_cast<int>(result)));
    return map;
}

#else

inline TensorMap tensor_map(const Call&, const char*, const uint16_t* base, const MapShape& shape, ElementType) {
    TensorMap map;
    map.base = const_cast<uint16_t*>(base);
    for (int d = 0; d < 4; ++d) {
        map.size[d] = shape.size[d];
        map.box[d] = shape.box[d];
        map.element_stride[d] = shape.element_stride[d];
        if (d > 0) map.stride_bytes[d] = map.stride_bytes[d - 1] * map.size[d - 1];
        if (d > 0 && shape.pitch[d]) map.stride_bytes[d] = shape.pitch[d] * int64_t{sizeof(uint16_t)};
    }
    map.swizzle = Swizzle::k128B;
    map.fill = shape.nan_fill ? emu::OobFill::kNan : emu::OobFill::kZero;
    emu::validate(map);
    return map;
}

#endif

}  // namespace launch
