// Scalar formats of the tensor core and of the packed bf16 arithmetic.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "device/wgmma_types.cuh"

namespace emu {

// What TMA writes out of bounds with NaN fill, and what fma.oob recognises. The ISA does not give the bits: no kernel
// may depend on them, only on the two agreeing. probe.cu prints what a GPU uses.
constexpr uint16_t kOobNan = 0x7FF7;

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
inline float f16_to_float(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

inline uint16_t bf16_from_float(float value) {
    auto bits = std::bit_cast<uint32_t>(value);
    if (std::isnan(value)) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// One rounding from double: go through a float rounded to odd, which cannot hide a tie.
inline uint16_t bf16_from_double(double value) {
    if (std::isnan(value)) return 0x7FFF;
    auto narrow = static_cast<float>(value);
    if (std::fabs(double{narrow}) > std::fabs(value)) narrow = std::nextafter(narrow, 0.0f);
    if (double{narrow} != value) narrow = std::bit_cast<float>(std::bit_cast<uint32_t>(narrow) | 1u);
    return bf16_from_float(narrow);
}

inline uint16_t f16_from_double(double value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }

inline float to_float(ElementType type, uint16_t bits) {
    return type == ElementType::kBf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

// The product is exact in double, whose one rounding before the sum's lies far below either format's last bit.
template <ElementType kType>
uint16_t fma_relu_oob(uint16_t x, uint16_t scale, uint16_t bias) {
    if (x == kOobNan || scale == kOobNan || bias == kOobNan) return 0;
    double result = double{to_float(kType, x)} * double{to_float(kType, scale)} + double{to_float(kType, bias)};
    if (result < 0) return 0;
    return kType == ElementType::kBf16 ? bf16_from_double(result) : f16_from_double(result);
}

template <class Half>
uint32_t for_both_halves(Half half, uint32_t x, uint32_t y, uint32_t z) {
    uint32_t low = half(uint16_t(x), uint16_t(y), uint16_t(z));
    uint32_t high = half(uint16_t(x >> 16), uint16_t(y >> 16), uint16_t(z >> 16));
    return low | high << 16;
}

}  // namespace emu
