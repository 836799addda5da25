"""The residual block, forward and backward: raw ops in order, and what is kept between them.

Forward, every convolution reads its producer's raw output through the norm's prologue and leaves its own statistics
behind; backward, every convolution reads the masked gradient and its own output through `dz = a g + b z + c`.  Kept
are the block's input and output, the inner convolutions' raw outputs, and per-channel vectors: 6T for an identity
bottleneck in a chain, whose last convolution's output is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import training as raw
from . import norm, pointwise_tail, shortcut
from .norm import Affine, Normalized

# weight, norm weight, norm bias, constant mean, constant variance
TENSORS_A_UNIT = 5


@dataclass(frozen=True)
class Geometry:
    """A convolution's stride and padding, and its norm's eps."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    eps: float


@dataclass(frozen=True)
class BlockPlan:
    """What a residual block is, but for its tensors.

    Attributes:
        units: the convolutions of the residual branch.
        downsample: the projection's convolution, or None.
        residual_stride: an option-A shortcut's stride; 1 with as many channels is the identity.
        pointwise_tail: whether the last convolution is a 1x1 whose output need not be stored (a bottleneck's).
        dtype: what the maps and the products are computed in.
    """

    units: tuple[Geometry, ...]
    downsample: Geometry | None
    residual_stride: int
    pointwise_tail: bool
    dtype: torch.dtype


class Unit(NamedTuple):
    """A convolution's weight, in the dtype that it computes in, and its norm."""

    weight: Tensor
    affine: Affine
    geometry: Geometry

    @property
    def window(self) -> tuple:
        return self.geometry.stride, self.geometry.padding


def _units(plan: BlockPlan, tensors: Sequence[Tensor | None]) -> tuple[list[Unit], Unit | None]:
    geometries = [*plan.units, *([plan.downsample] if plan.downsample else [])]
    units = []
    for i, geometry in enumerate(geometries):
        weight, *vectors = tensors[i * TENSORS_A_UNIT : (i + 1) * TENSORS_A_UNIT]
        units.append(Unit(weight.to(plan.dtype), Affine(*vectors, geometry.eps), geometry))
    return (units[:-1], units[-1]) if plan.downsample else (units, None)


class Kept(NamedTuple):
    """What the backward pass needs of the branch: stored outputs with their norms, and the tail's sums."""

    maps: list[Tensor]
    norms: list[Normalized]
    tail: pointwise_tail.Tail | None
    projection: pointwise_tail.Tail | None


def block_forward(plan: BlockPlan, x: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Kept]:
    """The block's output and what its backward needs."""
    units, projection = _units(plan, tensors)
    stored = units[:-1] if plan.pointwise_tail else units
    maps, norms = [], []
    source, in_scale, in_shift = x, None, None
    for unit in stored:
        z, partials = raw.conv_stats(source, unit.weight, in_scale, in_shift, *unit.window, (1, 1), 1)
        normalized = norm.from_partials(unit.affine, partials, z)
        maps.append(z)
        norms.append(normalized)
        source, in_scale, in_shift = z, normalized.scale, normalized.shift

    residual, projected = x, None
    if projection is not None:
        residual, projected = shortcut.project(x, _projection(projection))
    if not plan.pointwise_tail:
        out = raw.bn_add_act(source, in_scale, in_shift, residual, plan.residual_stride, "relu")
        return out, Kept(maps, norms, None, projected)
    last = units[-1]
    tail = pointwise_tail.statistics(source, in_scale, in_shift, last.weight, last.affine, 1)
    out = raw.conv1x1_bn_add_act(
        source,
        in_scale,
        in_shift,
        last.weight,
        tail.norm.scale,
        tail.norm.shift,
        residual,
        (1, 1),
        plan.residual_stride,
        "relu",
    )
    return out, Kept(maps, norms, tail, projected)


def _projection(unit: Unit) -> shortcut.Projection:
    return shortcut.Projection(unit.weight, unit.affine, unit.geometry.stride[0])


def block_backward(
    plan: BlockPlan,
    kept: Kept,
    x: Tensor,
    out: Tensor | None,
    grad: Tensor,
    tensors: Sequence[Tensor | None],
    needs: list[bool],
    mask_dx: bool,
) -> list[Tensor | None]:
    """The gradients of x and of `tensors`, in their order.

    Args:
        out: the block's output, by which `grad` is masked; None where it is masked already.
        needs: which gradients are wanted, of x and of `tensors`; what only the others would need is not computed.
        mask_dx: mask x's gradient by x > 0, x being the output of a block that would do so next.
    """
    units, projection = _units(plan, tensors)
    found: list[Tensor | None] = [None] * len(needs)
    wanted = [any(needs[1 + i * TENSORS_A_UNIT : 1 + (i + 1) * TENSORS_A_UNIT]) for i in range(len(units))]
    # below[i]: whether anything before unit i wants a gradient
    below = [needs[0] or any(wanted[:i]) for i in range(len(units))]

    g, backward = _last(plan, kept, out, grad, units, found)
    # A basic block's masked gradient is at hand; a bottleneck's never is.
    mask, unmasked = (out, grad) if plan.pointwise_tail else (None, g)
    skip, skip_out = _skip(plan, kept, x, mask, unmasked, projection, needs, found)
    for i in range(len(kept.maps) - 1, -1, -1):
        unit, z = units[i], kept.maps[i]
        source, in_norm = (kept.maps[i - 1], kept.norms[i - 1]) if i else (x, None)
        _put_norm(found, i, backward)
        scale, shift, mean = (in_norm.scale, in_norm.shift, in_norm.mean) if in_norm else (None, None, None)
        coefficients = (backward.a, backward.b, backward.c)
        if needs[1 + i * TENSORS_A_UNIT]:
            size = list(unit.weight.shape)
            found[1 + i * TENSORS_A_UNIT] = raw.conv_wgrad(
                g, z, *coefficients, source, scale, shift, size, *unit.window
            )
        if not below[i]:
            break
        masked = (source, scale, shift, mean) if i else _sign_mask(x, backward.a) if mask_dx else (None,) * 4
        added = (None, None) if i else (skip, skip_out)
        size = list(source.shape)
        g, sum_g, sum_gz = raw.conv_dgrad(g, z, *coefficients, unit.weight, size, *unit.window, *masked, *added)
        if i:
            backward = norm.backward(in_norm, sum_g, sum_gz, source.shape[0] * source.shape[2] * source.shape[3])
    if needs[0]:
        found[0] = g
    return found


def _sign_mask(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x as its own mask, x * 1 + 0 > 0, in the form of a norm's output; `like` has the vectors' dtype."""
    zeros = torch.zeros(x.shape[1], dtype=like.dtype, device=like.device)
    return x, zeros + 1, zeros, zeros


def _put_norm(found: list, unit: int, backward: norm.Backward) -> None:
    found[2 + unit * TENSORS_A_UNIT], found[3 + unit * TENSORS_A_UNIT] = backward.weight, backward.bias


def _last(plan, kept, out, grad, units, found) -> tuple[Tensor, norm.Backward]:
    """From the block's gradient to that of the last stored norm's output, masked, with its backward coefficients."""
    z, normalized = kept.maps[-1], kept.norms[-1]
    count = z.shape[0] * z.shape[2] * z.shape[3]
    if not plan.pointwise_tail:
        g, sum_g, sum_gz = raw.bn_act_backward(grad, out, z, normalized.mean)
        return g, norm.backward(normalized, sum_g, sum_gz, count)
    last = len(units) - 1
    tail = pointwise_tail.gradients(kept.tail, grad, out, z, normalized.scale, normalized.shift, units[last].weight, 1)
    found[1 + last * TENSORS_A_UNIT] = tail.weight
    _put_norm(found, last, norm.Backward(tail.t, None, None, tail.bn_weight, tail.bn_bias))
    g, sum_g, sum_gz = raw.gram_backward_finish(
        tail.t,
        z,
        normalized.scale,
        normalized.shift,
        kept.tail.center,
        tail.quadratic,
        tail.constant,
        normalized.mean,
    )
    return g, norm.backward(normalized, sum_g, sum_gz, count)


def _skip(plan, kept, x, out, grad, projection, needs, found) -> tuple[Tensor | None, Tensor | None]:
    """What the shortcut adds to x's gradient: a map, and the output that masks it where it is not masked yet."""
    if projection is not None:
        first = 1 + len(plan.units) * TENSORS_A_UNIT
        if not (needs[0] or any(needs[first:])):
            return None, None
        skip, gradients = shortcut.projection_backward(kept.projection, grad, out, x, _projection(projection), needs[0])
        found[first : first + 3] = [gradients.weight, gradients.bn_weight, gradients.bn_bias]
        return skip, None
    if not needs[0]:
        return None, None
    if plan.residual_stride == 1 and x.shape[1] == grad.shape[1]:
        return grad, out
    return shortcut.option_a_backward(grad, out, x.shape, plan.residual_stride), None
