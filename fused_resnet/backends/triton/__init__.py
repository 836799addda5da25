"""Triton kernels for GPUs of compute capability 8.0 and newer: one NHWC implicit GEMM with a fused epilogue.

From an op to its kernel: this file (which algorithm), `launch.py` (tensors), `plan.py` (kernel and grid), `kernels/`.
Outputs are channels_last; inputs in another layout are copied into it first (`launch.dense_nhwc`).

A measured tuning entry always decides the algorithm.  Where there is none for the device and shape, nothing is known:
asked for by name, the implicit GEMM runs with `tuning.heuristics.default`'s tile; under `auto` (the functions ending in
`_auto`) ATen's convolution does, which on a GPU is cuDNN's, followed by one pass for scale, shift, residual and ReLU.
Grouped and dilated convolutions always take ATen's and that pass.

The training ops are in `training.py`, `training_gram.py` and `training_one_read.py`, which launch the plans of
`training_plan.py` and `training_split_plan.py`; their convolutions are never grouped or dilated, and never ATen's.
"""

from __future__ import annotations

from torch import Tensor

from ...shapes import ConvShape
from ...tuning import Choice, lookup
from .availability import unavailable_reason, unsupported_reason
from .training import (
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
from .training_gram import conv1x1_bn_add_act, gram, gram_backward_finish, gram_finalize
from .training_one_read import conv1x1_backward, gram_products

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

_CONV = "conv_scale_shift_act"


def choose(arch: int, dtype: str, shape: ConvShape) -> Choice:
    """The tuned algorithm and tile, or the default implicit GEMM."""
    return lookup(_CONV, arch, dtype, shape)


def choose_auto(arch: int, dtype: str, shape: ConvShape) -> Choice:
    """The tuned algorithm and tile, or ATen's convolution where nothing was measured."""
    choice = lookup(_CONV, arch, dtype, shape)
    return choice if choice.measured else Choice("aten")


def conv_scale_shift_act(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual_stride: int = 1,
    act: str = "relu",
) -> Tensor:
    """`act(conv(x, weight) * scale + shift + shortcut(residual))`; see `fused_resnet.ops.conv_scale_shift_act`."""
    from . import launch

    bn = (bn_weight, bn_bias, running_mean, running_var)
    geometry = (stride, padding, dilation, groups)
    return launch.conv(x, weight, bn, eps, residual, *geometry, residual_stride, act, choose)


def conv_scale_shift_act_auto(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual_stride: int = 1,
    act: str = "relu",
) -> Tensor:
    """`conv_scale_shift_act` that keeps to ATen's convolution wherever ours was not measured to be faster."""
    from . import launch

    bn = (bn_weight, bn_bias, running_mean, running_var)
    geometry = (stride, padding, dilation, groups)
    return launch.conv(x, weight, bn, eps, residual, *geometry, residual_stride, act, choose_auto)


def conv_bn_relu_maxpool(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = 0.0,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (3, 3),
    pool_kernel: int = 3,
    pool_stride: int = 2,
    pool_padding: int = 1,
) -> Tensor:
    """A ResNet's stem in two kernels; see `fused_resnet.ops.conv_bn_relu_maxpool`."""
    from . import launch

    bn = (bn_weight, bn_bias, running_mean, running_var)
    y = launch.conv(x, weight, bn, eps, None, stride, padding, (1, 1), 1, 1, "relu", choose)
    return launch.max_pool(y, pool_kernel, pool_stride, pool_padding)


def conv_bn_relu_maxpool_auto(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = 0.0,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (3, 3),
    pool_kernel: int = 3,
    pool_stride: int = 2,
    pool_padding: int = 1,
) -> Tensor:
    """`conv_bn_relu_maxpool` that keeps to ATen's convolution wherever ours was not measured to be faster."""
    from . import launch

    bn = (bn_weight, bn_bias, running_mean, running_var)
    y = launch.conv(x, weight, bn, eps, None, stride, padding, (1, 1), 1, 1, "relu", choose_auto)
    return launch.max_pool(y, pool_kernel, pool_stride, pool_padding)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W, (N, C, 1, 1), accumulated in float32."""
    from . import launch

    return launch.global_avg_pool(x)


def option_a_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Subsampled in space and zero-padded in channels; see `fused_resnet.ops.option_a_shortcut`."""
    from . import launch

    return launch.option_a_shortcut(x, out_channels, stride)
