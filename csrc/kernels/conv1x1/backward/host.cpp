// conv1x1_backward, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/backward/launch.cu"

HOST(HOST_ROW(conv1x1_backward), HOST_ROW(conv1x1_backward_rows))
