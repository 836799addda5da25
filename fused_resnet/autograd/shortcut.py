"""The three shortcuts of a residual block, forward and backward: identity, option A, projection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.reference.parts import masked
from ..ops import training as raw
from . import tail as pointwise_tail
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
    """The gradients of the pixels that the projection read, (N, C, P, Q), and of its parameters; `grad` is masked by
    `out > 0` where `out` is given."""
    stride = projection.stride
    found = pointwise_tail.gradients(tail, grad, out, x, None, None, projection.weight, stride)
    if not needs_dx:
        return None, found
    sampled = x[:, :, ::stride, ::stride]
    dx, _, _ = raw.gram_backward_finish(
        found.t, sampled, None, None, tail.center, found.quadratic, found.constant, torch.zeros_like(found.constant)
    )
    return dx, found


def option_a_backward(grad: Tensor, out: Tensor | None, channels: int) -> Tensor:
    """The gradient of the sampled pixels of an option-A shortcut's input: that of its own channels."""
    below = (grad.shape[1] - channels) // 2
    own = slice(below, below + channels)
    found = masked(grad[:, own], None if out is None else out[:, own])
    return found.contiguous(memory_format=torch.channels_last)
