// The passes that belong to no convolution, launchers and kernels, compiled for the CPU.
#include "emulation/host.hpp"

#include "kernels/passes/add_act.cu"
#include "kernels/passes/global_avg_pool.cu"
#include "kernels/passes/pool.cu"
#include "kernels/passes/statistics.cu"

HOST(HOST_ROW(bn_add_act), HOST_ROW(bn_act_backward), HOST_ROW(bn_backward_apply), HOST_ROW(bn_relu_maxpool),
     HOST_ROW(bn_relu_maxpool_backward), HOST_ROW(global_avg_pool), HOST_ROW(channel_stats), HOST_ROW(merge_partials),
     HOST_ROW(bn_finalize), HOST_ROW(sum_partials))
