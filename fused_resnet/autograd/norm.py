"""Batch norm between its convolution's epilogue and the next one's prologue: per-channel vectors, no feature maps.

Names as in DESIGN: `mean`, `invstd` of the statistics in use; `scale = weight * invstd`, `shift = bias - mean * scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..ops import training as raw
from . import sync


class Affine(NamedTuple):
    """A batch norm's parameters as a Function gets them.

    `weight` and `bias` may be None (affine off).  `running_mean` and `running_var` are given where the statistics are
    constants (eval mode), and None where they are the batch's; then `group` is the process group whose ranks share
    them, or None.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float
    group: ProcessGroup | None = None


class Batch(NamedTuple):
    """Whose pixels statistics are of: all ranks' of `group`, or this process's where that is None."""

    group: ProcessGroup | None


class Normalized(NamedTuple):
    """What normalising takes, (K,) each in float32 (float64 for float64).

    `count`: the pixels of all ranks, a scalar of that dtype, where statistics are shared; else None.  `batch`: None for
    constant statistics.
    """

    mean: Tensor
    var: Tensor
    invstd: Tensor
    scale: Tensor
    shift: Tensor
    count: Tensor | None
    batch: Batch | None


class Backward(NamedTuple):
    """`dz = a * g + b * z + c`, from the gradient of a norm's output to its input's; and its parameters' gradients."""

    a: Tensor
    b: Tensor | None
    c: Tensor | None
    weight: Tensor
    bias: Tensor


def pixels(z: Tensor) -> int:
    """How many values a channel of `z`, (N, K, P, Q), has."""
    return z.shape[0] * z.shape[2] * z.shape[3]


def constant(affine: Affine, like: Tensor) -> Normalized:
    """The running statistics, in the dtype and on the device of the vectors that belong to the map `like`."""
    wide = torch.promote_types(like.dtype, torch.float32)
    mean, var = affine.running_mean.to(wide), affine.running_var.to(wide)
    invstd = torch.rsqrt(var + affine.eps)
    scale = invstd if affine.weight is None else affine.weight.to(wide) * invstd
    shift = -mean * scale if affine.bias is None else affine.bias.to(wide) - mean * scale
    return Normalized(mean, var, invstd, scale, shift, None, None)


def from_partials(affine: Affine, partials: Tensor | None, z: Tensor) -> Normalized:
    """The statistics of `z` from its epilogue's partials, or the running ones where they are constants; then the
    partials may be None."""
    if affine.running_mean is not None:
        return constant(affine, z)
    if affine.group is None:
        return Normalized(*raw.bn_finalize(partials, affine.weight, affine.bias, affine.eps), None, Batch(None))
    mean, var, *_ = raw.bn_finalize(partials, None, None, affine.eps)
    return shared(affine, pixels(z), mean, var)


def shared(affine: Affine, count: int, mean: Tensor, var: Tensor) -> Normalized:
    """The statistics of all ranks' pixels, given those of this one's `count`: one collective, of 3 K numbers a rank."""
    own = torch.stack((torch.full_like(mean, count), mean, var * count))
    partials = sync.gathered(own, affine.group)
    vectors = raw.bn_finalize(partials, affine.weight, affine.bias, affine.eps)
    return Normalized(*vectors, partials[:, 0, 0].sum(), Batch(affine.group))


def all_ranks(norm: Normalized, sums: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor | int]:
    """Both sums of a backward pass and the pixels they are over, where statistics are shared of every rank's."""
    if norm.batch.group is None:
        return *sums, max(count, 1)
    return *sync.summed(torch.stack(sums), norm.batch.group), norm.count.clamp(min=1)


def backward(norm: Normalized, sum_g: Tensor, sum_gz: Tensor, count: int) -> Backward:
    """The coefficients of a batch norm's backward (Ioffe and Szegedy 2015, section 3), and its parameters' gradients.

    The parameters' are of this rank's pixels alone, as SyncBatchNorm's: DistributedDataParallel averages them.

    Args:
        sum_g: the sum over pixels of the gradient g of the norm's output, (K,).
        sum_gz: the sum of g * (z - mean), (K,).
        count: pixels.
    """
    weight = sum_gz * norm.invstd
    if norm.batch is None:
        return Backward(norm.scale, None, None, weight, sum_g)
    all_g, all_gz, count = all_ranks(norm, (sum_g, sum_gz), count)
    b = -norm.scale * norm.invstd * (all_gz * norm.invstd) / count
    c = -norm.scale * all_g / count - b * norm.mean
    return Backward(norm.scale, b, c, weight, sum_g)
