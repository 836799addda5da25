"""The ops of inference in plain PyTorch, on any device and in any floating-point dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts import shortcut


def scale_and_shift(
    channels: int,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """`scale = bn_weight / sqrt(running_var + eps)`, `shift = bn_bias - running_mean * scale`, (channels,) in `dtype`.

    A missing `bn_weight` is one, a missing `bn_bias` zero; without statistics the two are scale and shift themselves.
    """
    scale = torch.ones(channels, dtype=dtype, device=device) if bn_weight is None else bn_weight.to(dtype)
    shift = torch.zeros(channels, dtype=dtype, device=device) if bn_bias is None else bn_bias.to(dtype)
    if running_var is not None:
        scale = scale * torch.rsqrt(running_var.to(dtype) + eps)
        shift = shift - running_mean.to(dtype) * scale
    return scale, shift


def normalize(z: Tensor, bn_weight, bn_bias, running_mean, running_var, eps: float) -> Tensor:
    """Batch norm in inference, `z * scale + shift`; a fresh tensor, unless there is nothing to do."""
    if running_var is not None:
        vectors = (running_mean, running_var, bn_weight, bn_bias)
        # batch_norm takes vectors of the map's own dtype, or float32 ones beside a half-precision map, and no others
        if any(v is not None and v.dtype != z.dtype for v in vectors):
            wide = torch.promote_types(z.dtype, torch.float32)
            vectors = tuple(None if v is None else v.to(wide) for v in vectors)
        mean, var, weight, bias = vectors
        return F.batch_norm(z, mean, var, weight, bias, False, 0.0, eps)
    if bn_weight is None and bn_bias is None:
        return z
    wide = torch.promote_types(z.dtype, torch.float32)
    scale, shift = scale_and_shift(z.shape[1], bn_weight, bn_bias, None, None, eps, wide, z.device)
    return torch.addcmul(shift.view(1, -1, 1, 1), z, scale.view(1, -1, 1, 1)).to(z.dtype)


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
    z = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    y = normalize(z, bn_weight, bn_bias, running_mean, running_var, eps)
    if residual is not None:
        y = y + shortcut(residual, weight.shape[0], residual_stride)
    return torch.relu(y) if act == "relu" else y


def bottleneck_inference(
    x: Tensor,
    weight1: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight2: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight3: Tensor,
    scale3: Tensor,
    shift3: Tensor,
    downsample: Tensor | None,
    downsample_scale: Tensor | None,
    downsample_shift: Tensor | None,
    stride: int,
) -> Tensor:
    """A bottleneck block, one convolution after the other; see `fused_resnet.ops.bottleneck_inference`."""
    residual, window = x, {"stride": (stride, stride)}
    if downsample is not None:
        residual = conv_scale_shift_act(x, downsample, downsample_scale, downsample_shift, **window, act="identity")
    y = conv_scale_shift_act(x, weight1, scale1, shift1)
    y = conv_scale_shift_act(y, weight2, scale2, shift2, **window, padding=(1, 1))
    return conv_scale_shift_act(y, weight3, scale3, shift3, residual=residual)


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
    """A ResNet's stem; see `fused_resnet.ops.conv_bn_relu_maxpool`."""
    y = conv_scale_shift_act(
        x, weight, bn_weight, bn_bias, running_mean, running_var, eps, stride=stride, padding=padding
    )
    return F.max_pool2d(y, pool_kernel, pool_stride, pool_padding)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W, (N, C, 1, 1)."""
    return F.adaptive_avg_pool2d(x, 1)
