"""A ResNet's stem over the compiled kernels, in inference."""

from __future__ import annotations

import torch
from torch import Tensor

from .inference import conv_scale_shift_act
from .passes import bn_relu_maxpool


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
    """A ResNet's stem in two kernels; see `fused_resnet.ops.conv_bn_relu_maxpool`.

    The pooling is training's: it scales and shifts, here by one and zero, and finds the place of each maximum.
    """
    bn = (bn_weight, bn_bias, running_mean, running_var, eps)
    y = conv_scale_shift_act(x, weight, *bn, stride=stride, padding=padding)
    one = torch.ones(weight.shape[0], device=x.device)
    return bn_relu_maxpool(y, one, torch.zeros_like(one), pool_kernel, pool_stride, pool_padding)[0]
