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

from ..backends.reference.parts import add_skip, masked
from ..ops import training as raw
from . import grouped, norm, shortcut
from . import tail as pointwise_tail
from .norm import Affine, Normalized, pixels
from .unit import Geometry, Unit

# weight, norm weight, norm bias, constant mean, constant variance
TENSORS_A_UNIT = 5


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


def _units(plan: BlockPlan, tensors: Sequence[Tensor | None]) -> tuple[list[Unit], Unit | None]:
    geometries = [*plan.units, *([plan.downsample] if plan.downsample else [])]
    units = []
    for i, geometry in enumerate(geometries):
        weight, *vectors = tensors[i * TENSORS_A_UNIT : (i + 1) * TENSORS_A_UNIT]
        units.append(Unit(weight.to(plan.dtype), Affine(*vectors, geometry.eps, geometry.group), geometry))
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
        z, normalized = unit.forward(source, in_scale, in_shift)
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


class Incoming(NamedTuple):
    """The gradient of a block's output: `out` masks it, None where it is masked already; `sums` are those of the masked
    gradient g that the block's last stored norm needs, of g and of g * (z - mean), or None where nobody made them."""

    grad: Tensor
    out: Tensor | None
    sums: tuple[Tensor, Tensor] | None


class Below(NamedTuple):
    """What a block hands its input's gradient down to: a ReLU, and the norm beneath it that wants its sums, or None."""

    z: Tensor | None
    mean: Tensor | None


def below(plan: BlockPlan, kept: Kept) -> Below:
    """A block as the one above it sees it."""
    return Below(None, None) if plan.pointwise_tail else Below(kept.maps[-1], kept.norms[-1].mean)


class _Source(NamedTuple):
    """What a convolution read: a map, through a norm or as it is."""

    map: Tensor
    norm: Normalized | None

    @property
    def prologue(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.norm is None else (self.norm.scale, self.norm.shift)


def block_backward(
    plan: BlockPlan,
    kept: Kept,
    x: Tensor,
    incoming: Incoming,
    tensors: Sequence[Tensor | None],
    needs: list[bool],
    under: Below | None,
) -> tuple[Incoming | None, list[Tensor | None]]:
    """The gradient of x, or None where it is not wanted, and those of `tensors`, in their order.

    Args:
        needs: which gradients are wanted, of x and of `tensors`; what only the others would need is not computed.
        under: the block whose output x is, which x's gradient is masked for; None where x is anything else.
    """
    units, projection = _units(plan, tensors)
    found: list[Tensor | None] = [None] * len(needs)
    wanted = [any(needs[1 + i * TENSORS_A_UNIT : 1 + (i + 1) * TENSORS_A_UNIT]) for i in range(len(units))]

    g, backward = _last(plan, kept, incoming, units, found)
    # A basic block's masked gradient is at hand; a bottleneck's never is.
    unmasked = incoming if plan.pointwise_tail else Incoming(g, None, None)
    skip = _skip(plan, kept, x, unmasked, projection, needs, found)
    for i in range(len(kept.maps) - 1, 0, -1):
        source = _Source(kept.maps[i - 1], kept.norms[i - 1])
        _put_norm(found, i, backward)
        dz = (g, kept.maps[i], backward.a, backward.b, backward.c)
        more = needs[0] or any(wanted[:i])
        g, sums, found[1 + i * TENSORS_A_UNIT] = _inner(units[i], dz, source, more, needs[1 + i * TENSORS_A_UNIT])
        if not more:
            return None, found[1:]
        backward = norm.backward(source.norm, *sums, pixels(source.map))
    _put_norm(found, 0, backward)
    dz = (g, kept.maps[0], backward.a, backward.b, backward.c)
    first = _first if units[0].geometry.plain else _grouped_first
    return first(units[0], dz, x, skip, needs, under, found), found[1:]


def _inner(unit: Unit, dz: tuple, source: _Source, needs_dx: bool, needs_weight: bool) -> tuple:
    """From one convolution's dz to the masked gradient of the norm below it, its sums, and the weight's gradient."""
    if not unit.geometry.plain:
        needs = needs_dx, needs_weight
        dx, d_weight, read = grouped.conv_backward(
            dz, source.map, *source.prologue, unit.weight, *unit.full_window, needs
        )
        g, *sums = raw.bn_act_backward(dx, read, source.map, source.norm.mean) if needs_dx else (None,)
        return g, sums, d_weight
    d_weight = _weight_gradient(unit, dz, source) if needs_weight else None
    if not needs_dx:
        return None, (), d_weight
    mask = (source.map, *source.prologue, source.norm.mean, None)
    g, *sums = raw.conv_dgrad(*dz, unit.weight, list(source.map.shape), *unit.window, *mask, None, None, 1)
    return g, sums, d_weight


def _weight_gradient(unit: Unit, dz: tuple, source: _Source) -> Tensor:
    return raw.conv_wgrad(*dz, source.map, *source.prologue, list(unit.weight.shape), *unit.window)


def _first(unit: Unit, dz: tuple, x: Tensor, skip: tuple, needs, under: Below | None, found) -> Incoming | None:
    """The first convolution's gradients, the shortcut's joined to its input's."""
    one_read = unit.weight.shape[2:] == (1, 1) and unit.window == ((1, 1), (0, 0))
    one_read = one_read and unit.weight.shape[0] <= raw.ONE_READ_FILTERS and (under is None or under.z is None)
    if needs[0] and needs[1] and one_read:
        dx, found[1] = raw.conv1x1_backward(*dz, unit.weight, x, under is not None, *skip)
        return Incoming(dx, None, None)
    if needs[1]:
        found[1] = _weight_gradient(unit, dz, _Source(x, None))
    if not needs[0]:
        return None
    z, mean = (None, None) if under is None else under
    mask = (z, None, None, mean, None if under is None else x)
    dx, *sums = raw.conv_dgrad(*dz, unit.weight, list(x.shape), *unit.window, *mask, *skip)
    return Incoming(dx, None, None if z is None else tuple(sums))


def _grouped_first(unit: Unit, dz: tuple, x: Tensor, skip: tuple, needs, under: Below | None, found) -> Incoming | None:
    """As `_first`; the sums are left to the block below, which reads its own maps again."""
    dx, found[1], _ = grouped.conv_backward(dz, x, None, None, unit.weight, *unit.full_window, tuple(needs[:2]))
    if dx is None:
        return None
    add_skip(dx, *skip)
    return Incoming(dx if under is None else masked(dx, x), None, None)


def _put_norm(found: list, unit: int, backward: norm.Backward) -> None:
    found[2 + unit * TENSORS_A_UNIT], found[3 + unit * TENSORS_A_UNIT] = backward.weight, backward.bias


def _last(plan, kept, incoming: Incoming, units, found) -> tuple[Tensor, norm.Backward]:
    """From the block's gradient to that of the last stored norm's output, masked, with its backward coefficients."""
    z, normalized = kept.maps[-1], kept.norms[-1]
    count = pixels(z)
    grad, out, sums = incoming
    if not plan.pointwise_tail:
        g, *sums = raw.bn_act_backward(grad, out, z, normalized.mean) if sums is None else (grad, *sums)
        return g, norm.backward(normalized, *sums, count)
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


def _skip(plan, kept, x, incoming: Incoming, projection, needs, found) -> tuple[Tensor | None, Tensor | None, int]:
    """What the shortcut adds to x's gradient: a map, the output that masks it where that is to be done, its stride."""
    grad, out, _ = incoming
    if projection is not None:
        first = 1 + len(plan.units) * TENSORS_A_UNIT
        if not (needs[0] or any(needs[first:])):
            return None, None, 1
        skip, gradients = shortcut.projection_backward(kept.projection, grad, out, x, _projection(projection), needs[0])
        found[first : first + 3] = [gradients.weight, gradients.bn_weight, gradients.bn_bias]
        return skip, None, 1 if skip is None else projection.geometry.stride[0]
    if not needs[0]:
        return None, None, 1
    if plan.residual_stride == 1 and x.shape[1] == grad.shape[1]:
        return grad, out, 1
    return shortcut.option_a_backward(grad, out, x.shape[1]), None, plan.residual_stride
