// stem_wgrad, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/stem/wgrad/launch.cu"

HOST(HOST_ROW(stem_wgrad), HOST_ROW(stem_wgrad_splits))
