// conv3x3_halo_split, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv3x3/split/launch.cu"

HOST(HOST_ROW(conv3x3_halo_split_act), HOST_ROW(conv3x3_halo_split_tiles), HOST_ROW(conv3x3_halo_splits))
