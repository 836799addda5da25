// conv1x1_wgrad, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/wgrad/launch.cu"

HOST(HOST_ROW(conv1x1_wgrad), HOST_ROW(conv1x1_wgrad_splits))
