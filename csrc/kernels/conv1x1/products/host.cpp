// conv1x1_products, launcher and kernels, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/conv1x1/products/launch.cu"

HOST(HOST_ROW(conv1x1_products), HOST_ROW(conv1x1_products_rows))
