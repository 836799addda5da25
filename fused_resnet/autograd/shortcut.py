"""The three shortcuts of a residual block, forward and backward: identity, option A, projection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import training as raw
from . import pointwise_tail
from .norm import Affine


class Projection(NamedTuple):
    """A 1x1 convolution with its batch norm; `weight` (K, C, 1, 1) in the dtype that it computes in."""

    weight: Tensor
    affine: Affine
    stride: int


def project(x: Tensor, projection: Projection) -> tuple[Tensor, pointwise_tail.Tail]:
    """`bn(conv1x1(x))`, and what its backward needs; the convolution's own output is never stored."""
    weight, stride = projection.weight, projection.stride
    tail = pointwise_tail.statistics(x, None, None, weight, projection.affine, stride)
    y = raw.conv1x1_bn_add_act(
        x, None, None, weight, tail.norm.scale, tail.norm.shift, None, (stride, stride), 1, "identity"
    )
    return y, tail


def projection_backward(
    tail: pointwise_tail.Tail, grad: Tensor, out: Tensor | None, x: Tensor, projection: Projection, needs_dx: bool
) -> tuple[Tensor | None, pointwise_tail.TailGradients]:
    """The gradient of the projection's input, (N, C, H, W), and of its parameters; `grad` is masked by `out > 0`
    where `out` is given."""
    stride = projection.stride
    found = pointwise_tail.gradients(tail, grad, out, x, None, None, projection.weight, stride)
    if not needs_dx:
        return None, found
    sampled = x[:, :, ::stride, ::stride]
    dx, _, _ = raw.gram_backward_finish(
        found.t, sampled, None, None, tail.center, found.quadratic, found.constant, torch.zeros_like(found.constant)
    )
    return (dx if stride == 1 else _spread(dx, x.shape, stride)), found


def option_a_backward(grad: Tensor, out: Tensor | None, size: torch.Size, stride: int) -> Tensor:
    """The gradient of an option-A shortcut's input of `size`: the sampled pixels' own channels, zero elsewhere."""
    below = (grad.shape[1] - size[1]) // 2
    channels = slice(below, below + size[1])
    own = grad[:, channels] if out is None else torch.where(out[:, channels] > 0, grad[:, channels], 0)
    return _spread(own, size, stride)


def _spread(grad: Tensor, size: torch.Size, stride: int) -> Tensor:
    """`grad` at every `stride`-th pixel of a map of zeros."""
    spread = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last).zero_()
    spread[:, :, ::stride, ::stride] = grad
    return spread
