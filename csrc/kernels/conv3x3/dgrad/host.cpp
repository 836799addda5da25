// conv3x3_halo_dgrad, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv3x3/dgrad/launch.cu"

HOST(HOST_ROW(conv3x3_halo_dgrad))
