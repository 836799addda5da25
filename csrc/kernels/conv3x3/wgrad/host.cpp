// conv3x3_halo_wgrad, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv3x3/wgrad/launch.cu"

HOST(HOST_ROW(conv3x3_halo_wgrad), HOST_ROW(conv3x3_halo_wgrad_splits))
