// conv1x1_dgrad, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/dgrad/launch.cu"

HOST(HOST_ROW(conv1x1_dgrad), HOST_ROW(conv1x1_dgrad_partial_rows))
