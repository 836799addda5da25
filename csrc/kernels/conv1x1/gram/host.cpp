// conv1x1_gram, launcher and kernels, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/gram/launch.cu"

HOST(HOST_ROW(conv1x1_gram), HOST_ROW(conv1x1_gram_exact), HOST_ROW(conv1x1_gram_exact_rows),
     HOST_ROW(conv1x1_gram_rows))
