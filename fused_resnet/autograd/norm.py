"""Batch norm between its convolution's epilogue and the next one's prologue: per-channel vectors, no feature maps.

Names as in DESIGN: `mean`, `invstd` of the statistics in use; `scale = weight * invstd`, `shift = bias - mean * scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import training as raw


class Affine(NamedTuple):
    """A batch norm's parameters as a Function gets them.

    `weight` and `bias` may be None (affine off).  `running_mean` and `running_var` are given where the statistics are
    constants (eval mode), and None where they are the batch's.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float


class Normalized(NamedTuple):
    """What normalising takes, (K,) each in float32 (float64 for float64); `batch`: the statistics are the batch's."""

    mean: Tensor
    var: Tensor
    invstd: Tensor
    scale: Tensor
    shift: Tensor
    batch: bool


class Backward(NamedTuple):
    """`dz = a * g + b * z + c`, from the gradient of a norm's output to its input's; and its parameters' gradients."""

    a: Tensor
    b: Tensor | None
    c: Tensor | None
    weight: Tensor
    bias: Tensor


def constant(affine: Affine, like: Tensor) -> Normalized:
    """The running statistics, in the dtype and on the device of the vectors that belong to the map `like`."""
    wide = torch.promote_types(like.dtype, torch.float32)
    mean, var = affine.running_mean.to(wide), affine.running_var.to(wide)
    invstd = torch.rsqrt(var + affine.eps)
    scale = invstd if affine.weight is None else affine.weight.to(wide) * invstd
    shift = -mean * scale if affine.bias is None else affine.bias.to(wide) - mean * scale
    return Normalized(mean, var, invstd, scale, shift, batch=False)


def from_partials(affine: Affine, partials: Tensor, like: Tensor) -> Normalized:
    """The batch's statistics from an epilogue's partials, or the running ones where they are constants."""
    if affine.running_mean is not None:
        return constant(affine, like)
    return Normalized(*raw.bn_finalize(partials, affine.weight, affine.bias, affine.eps), batch=True)


def backward(norm: Normalized, sum_g: Tensor, sum_gz: Tensor, count: int) -> Backward:
    """The coefficients of a batch norm's backward (Ioffe and Szegedy 2015, section 3), and its parameters' gradients.

    Args:
        sum_g: the sum over pixels of the gradient g of the norm's output, (K,).
        sum_gz: the sum of g * (z - mean), (K,).
        count: pixels.
    """
    weight = sum_gz * norm.invstd
    if not norm.batch:
        return Backward(norm.scale, None, None, weight, sum_g)
    b = -norm.scale * norm.invstd * weight / count
    c = -norm.scale * sum_g / count - b * norm.mean
    return Backward(norm.scale, b, c, weight, sum_g)
