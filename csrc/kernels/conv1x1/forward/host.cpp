// conv1x1, launchers and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/forward/launch.cu"

HOST(HOST_ROW(conv1x1_act), HOST_ROW(conv1x1_stats), HOST_ROW(conv1x1_partial_rows), HOST_ROW(conv1x1_split_tiles),
     HOST_ROW(conv1x1_splits))
