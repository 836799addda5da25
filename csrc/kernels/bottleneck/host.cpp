// bottleneck_inference, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/bottleneck/launch.cu"

HOST(HOST_ROW(bottleneck_inference))
