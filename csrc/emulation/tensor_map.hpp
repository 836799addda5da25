// The tensor map of TMA and the address walk of one box.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "device/swizzle.cuh"
#include "emulation/numeric.hpp"
#include "emulation/shared_memory.hpp"

namespace emu {

enum class OobFill { kZero, kNan };

// Dimension 0 is the innermost and contiguous one, as for cuTensorMapEncodeTiled. Elements are 16 bits wide.
struct TensorMap {
    static constexpr uint32_t kElementBytes = 2;
    void* base = nullptr;
    int rank = 4;
    std::array<int64_t, 5> size{1, 1, 1, 1, 1};
    std::array<int64_t, 5> stride_bytes{2, 0, 0, 0, 0};
    std::array<int, 5> box{1, 1, 1, 1, 1};
    std::array<int, 5> element_stride{1, 1, 1, 1, 1};
    Swizzle swizzle = Swizzle::kNone;
    OobFill fill = OobFill::kZero;
    std::atomic<int64_t>* loaded_bytes = nullptr;  // counts what loads take out of global memory, fill not included
    bool constant = false;                         // no kernel that may still run writes it

    int box_elements(int dimension) const {  // element_stride[0] is ignored by the hardware
        if (dimension == 0) return box[0];
        return (box[dimension] + element_stride[dimension] - 1) / element_stride[dimension];
    }
    uint32_t row_bytes() const { return box[0] * kElementBytes; }
    uint32_t box_bytes() const {
        uint32_t bytes = row_bytes();
        for (int d = 1; d < rank; ++d) bytes *= box_elements(d);
        return bytes;
    }
};

using Coordinates = std::array<int, 5>;

// The rules cuTensorMapEncodeTiled enforces on the fields that kernels get wrong.
inline void validate(const TensorMap& map) {
    if (reinterpret_cast<uintptr_t>(map.base) % 16) fail("tensor map: base is not 16 B aligned");
    if (map.row_bytes() % 16) fail("tensor map: inner box of %u B is not a multiple of 16 B", map.row_bytes());
    for (int d = 0; d < map.rank; ++d) {
        if (map.box[d] < 1 || map.box[d] > 256) fail("tensor map: box[%d] = %d is not in 1..256", d, map.box[d]);
        if (d > 0 && map.stride_bytes[d] % 16) fail("tensor map: stride[%d] is not a multiple of 16 B", d);
        if (map.element_stride[d] < 1 || map.element_stride[d] > 8)
            fail("tensor map: element_stride[%d] not in 1..8", d);
    }
    if (map.swizzle != Swizzle::kNone && map.row_bytes() > swizzle_width(map.swizzle))
        fail("tensor map: inner box of %u B exceeds the swizzle width", map.row_bytes());
}

inline bool inside(const TensorMap& map, int dimension, int64_t coordinate) {
    return coordinate >= 0 && coordinate < map.size[dimension];
}

// Calls visit(shared address of the row, its global address or nullptr when out of bounds) for each inner row.
template <class Visit>
void for_each_row(const TensorMap& map, uint32_t shared, const Coordinates& origin, Visit visit) {
    uint32_t rows = map.box_bytes() / map.row_bytes();
    for (uint32_t row = 0; row < rows; ++row) {
        auto* global = static_cast<uint8_t*>(map.base);
        bool in_bounds = true;
        uint32_t rest = row;
        for (int d = 1; d < map.rank; ++d) {
            int64_t at = origin[d] + int64_t(rest % map.box_elements(d)) * map.element_stride[d];
            rest /= map.box_elements(d);
            in_bounds &= inside(map, d, at);
            global += at * map.stride_bytes[d];
        }
        visit(shared + row * map.row_bytes(), in_bounds ? global : nullptr);
    }
}

// Calls copy(shared address, global address or nullptr) for every element of the box.
template <class Copy>
void for_each_element(const TensorMap& map, uint32_t shared, const Coordinates& origin, Copy copy) {
    for_each_row(map, shared, origin, [&](uint32_t row_shared, uint8_t* row_global) {
        for (int i = 0; i < map.box[0]; ++i) {
            bool in_bounds = row_global && inside(map, 0, origin[0] + i);
            uint32_t address = swizzled(map.swizzle, row_shared + i * map.kElementBytes);
            copy(address, in_bounds ? row_global + (origin[0] + i) * map.kElementBytes : nullptr);
        }
    });
}

// The box as it will lie in shared memory from `shared` on.
inline std::vector<uint8_t> gather(const TensorMap& map, uint32_t shared, const Coordinates& origin) {
    uint16_t fill = map.fill == OobFill::kNan ? kOobNan : 0;
    std::vector<uint8_t> payload(map.box_bytes());
    int64_t loaded = 0;
    for_each_element(map, shared, origin, [&](uint32_t address, const uint8_t* global) {
        std::memcpy(&payload[address - shared], global ? global : reinterpret_cast<uint8_t*>(&fill), sizeof fill);
        if (global) loaded += sizeof fill;
    });
    if (map.loaded_bytes) *map.loaded_bytes += loaded;
    return payload;
}

inline void scatter(const TensorMap& map, uint32_t shared, const Coordinates& origin, const SharedMemory& memory) {
    for_each_element(map, shared, origin, [&](uint32_t address, uint8_t* global) {
        if (global) std::memcpy(global, memory.data(address), map.kElementBytes);
    });
}

}  // namespace emu
