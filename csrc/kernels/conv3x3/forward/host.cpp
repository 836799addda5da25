// conv3x3_halo, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv3x3/forward/launch.cu"

HOST(HOST_ROW(conv3x3_halo_act), HOST_ROW(conv3x3_halo_stats))
