"""The ops of inference over Triton kernels: which algorithm a convolution gets; `launch.py` launches it."""

from __future__ import annotations

from torch import Tensor

from ...shapes import ConvShape
from ...tuning import Choice, lookup
from . import launch

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
    bn = (bn_weight, bn_bias, running_mean, running_var)
    y = launch.conv(x, weight, bn, eps, None, stride, padding, (1, 1), 1, 1, "relu", choose_auto)
    return launch.max_pool(y, pool_kernel, pool_stride, pool_padding)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W, (N, C, 1, 1), accumulated in float32."""
    return launch.global_avg_pool(x)


def option_a_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Subsampled in space and zero-padded in channels; see `fused_resnet.ops.option_a_shortcut`."""
    return launch.option_a_shortcut(x, out_channels, stride)
