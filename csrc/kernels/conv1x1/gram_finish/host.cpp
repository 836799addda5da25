// conv1x1_gram_finish, launcher and kernel, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/gram_finish/launch.cu"

HOST(HOST_ROW(conv1x1_gram_finish), HOST_ROW(conv1x1_gram_finish_rows))
