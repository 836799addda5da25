"""Grouped and dilated convolutions in training: ATen's own, between this project's norms.

ATen reads and writes its operands in the maps' dtype, so the prologue and the epilogues around it are passes of their
own.  What the convolution reads is made from the raw map below it forward and again backward, and never kept.  Their
gradients are as deterministic as ATen's: on a GPU, see `torch.backends.cudnn.deterministic`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import training as raw


def convolve(
    x: Tensor,
    weight: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """`z = conv(prologue(x), weight)`, as the op `conv_stats`, but without the statistics."""
    return torch.conv2d(_activated(x, in_scale, in_shift), weight, None, stride, padding, dilation, groups)


def conv_backward(
    dz: tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None],
    x: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The gradients of what the convolution read and of its weight, where `needs` says so.

    Args:
        dz: g, z and the coefficients a, b, c of `dz = a * g + b * z + c`.
        x: (N, C, H, W), read through the norm prologue of in_scale and in_shift, (C,) each; or both None.
        weight: (K, C / groups, R, S), of x's dtype.

    Returns:
        `(dx, d_weight, read)`: the gradient of `read = prologue(x)`, before its ReLU's mask, (N, C, H, W), and the
        weight's, both in the maps' dtype; None where they are not wanted.
    """
    read = _activated(x, in_scale, in_shift)
    dx, d_weight, _ = torch.ops.aten.convolution_backward(
        raw.bn_backward_apply(*dz), read, weight, None, stride, padding, dilation, False, (0, 0), groups,
        (*needs, False),
    )  # fmt: skip
    return dx, d_weight, read


def _activated(x: Tensor, in_scale: Tensor | None, in_shift: Tensor | None) -> Tensor:
    return x if in_scale is None else raw.bn_add_act(x, in_scale, in_shift, None, 1, "relu")
