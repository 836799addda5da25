"""Triton kernels for GPUs of compute capability 8.0 and newer: one NHWC implicit GEMM with a fused epilogue.

From an op to its kernel: `inference.py` (which algorithm), `launch.py` (tensors), `plan.py` (kernel and grid),
`kernels/`.  Outputs are channels_last; inputs in another layout are copied into it first (`launch.dense_nhwc`).

A measured tuning entry always decides the algorithm.  Where there is none for the device and shape, nothing is known:
asked for by name, the implicit GEMM runs with `tuning.heuristics.default`'s tile; under `auto` (the functions ending in
`_auto`) ATen's convolution does, which on a GPU is cuDNN's, followed by one pass for scale, shift, residual and ReLU.
Grouped and dilated convolutions always take ATen's and that pass.

The training ops are in `training/launch.py`, `training/gram.py` and `training/one_read.py`, which launch the plans of
`training/plan.py` and `training/split_plan.py`; their convolutions are never grouped or dilated, and never ATen's.
"""

from __future__ import annotations

from .availability import unavailable_reason, unsupported_reason
from .inference import (
    conv_bn_relu_maxpool,
    conv_bn_relu_maxpool_auto,
    conv_scale_shift_act,
    conv_scale_shift_act_auto,
    global_avg_pool,
    option_a_shortcut,
)
from .training.gram import conv1x1_bn_add_act, gram, gram_backward_finish, gram_finalize
from .training.launch import (
    bn_act_backward,
    bn_add_act,
    bn_backward_apply,
    bn_finalize,
    bn_relu_maxpool,
    bn_relu_maxpool_backward,
    channel_stats,
    conv_dgrad,
    conv_stats,
    conv_wgrad,
)
from .training.one_read import conv1x1_backward, gram_products

__all__ = [
    "bn_act_backward",
    "bn_add_act",
    "bn_backward_apply",
    "bn_finalize",
    "bn_relu_maxpool",
    "bn_relu_maxpool_backward",
    "channel_stats",
    "conv1x1_backward",
    "conv1x1_bn_add_act",
    "conv_bn_relu_maxpool",
    "conv_bn_relu_maxpool_auto",
    "conv_dgrad",
    "conv_scale_shift_act",
    "conv_scale_shift_act_auto",
    "conv_stats",
    "conv_wgrad",
    "global_avg_pool",
    "gram",
    "gram_backward_finish",
    "gram_finalize",
    "gram_products",
    "option_a_shortcut",
    "unavailable_reason",
    "unsupported_reason",
]
