#pragma once
#include <map>
#include <string>

namespace launch {

// Why no kernel can be launched on this machine; empty where one can.
std::string device_problem();

// Bytes of dynamic shared memory that a block of each kernel is launched with, if any, which its machine code does not
// tell: by its name, and where they depend on its template arguments, by those behind the element type too, as in
// "conv3x3_halo_kernel 64 1 0". A kernel with tensor maps must be listed.
std::map<std::string, int> shared_bytes();

}  // namespace launch
