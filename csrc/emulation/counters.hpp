// What emulated kernels move besides TMA's counted loads, for the tests of those kernels: host.hpp hands it out.
#pragma once
#include <atomic>
#include <cstdint>

namespace emu {

inline std::atomic<int64_t> loaded_element_bytes;  // by load_element
inline std::atomic<int64_t> stored_output_bytes;   // by tma_store_output_4d; what lies outside of the map not included

}  // namespace emu
