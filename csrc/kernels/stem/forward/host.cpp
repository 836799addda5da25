// stem, launchers and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/stem/forward/launch.cu"

HOST(HOST_ROW(stem_act), HOST_ROW(stem_stats), HOST_ROW(stem_partial_rows))
