"""The rule that an output passes or fails by: no further from float64 than rounding explains.

How far that is, is sampled (`rounding.sampled`): the reference is run a dozen times in the output's dtype, every
rounding disturbed.  Our error is then held against the spread of these runs about float64, element by element, and
along each channel, where a wrong factor shows long before any one element is out.  The limit is such that rounding
alone passes it with a probability of a million to one, over all elements of an output together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .rounding import RMS

CHANCE = 1e-6  # that rounding alone fails an output
# A variance from a dozen runs is itself uncertain: Student's tail against the normal one's, where half of it is pooled.
SAMPLED = 1.25
# Of the pooled variance no more counts than this times the element's own: others of far larger scale excuse nothing.
POOLED_AT_MOST = 50.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One output's verdict; errors are against float64, in units of the RMS of the float64 output.

    Attributes:
        share: our worst error over what is allowed there; it passes up to 1, and is infinite where values that are
            not finite stand elsewhere than in float64.
        along: whether it is a whole channel that is worst, and not one element.
        worst: its coordinates: of the element, or (channel,).
        rms_rounding: the RMS error of the disturbed runs of the reference.
    """

    name: str
    share: float
    along: bool
    worst: tuple[int, ...]
    rms_ours: float
    rms_rounding: float
    max_ours: float

    @property
    def passed(self) -> bool:
        return self.share <= 1


def compare(name: str, ours: Tensor, gold: Tensor, disturbed: Iterable[Tensor]) -> Row:
    """Hold `ours` against `gold`, the same output in float64, allowing what rounding did to `disturbed`.

    Args:
        ours: any shape but an empty one; channels are dimension 1 of four, else dimension 0.
        gold: the same output from float64.
        disturbed: the reference's outputs in ours' dtype, as `sampled` yields them; at least two, of any device.

    Raises:
        ValueError: nothing could be concluded: the shapes or dtypes differ, there is no element, something is compared
            with itself, or the reference is not finite where float64 is.
    """
    gold = gold.detach()
    _require_comparable(name, ours, gold)
    g = _rows(gold if _all_finite(gold) else gold.nan_to_num(0, 0, 0))
    own, along_own, runs = torch.zeros_like(g), g.new_zeros(len(g)), 0
    norm = g.square().sum(1).sqrt()
    direction = g / norm.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    for other in disturbed:
        _require_reference(name, ours, gold, other)
        error = _rows(_errors(other, gold))
        own += error.square()
        along_own += (error * direction).sum(1).square()
        runs += 1
    if runs < 2:
        raise ValueError(f"{name}: a spread takes at least 2 disturbed runs of the reference, got {runs}")
    error = _rows(_errors(ours, gold))
    floor = RMS * torch.finfo(ours.dtype).eps
    single = _shares(error, own / runs, floor * g.abs())
    along = _shares((error * direction).sum(1, keepdim=True), (along_own / runs)[:, None], _floor_along(floor, g, norm))
    return _row(name, ours, gold, g, error, single, along, (own / runs).mean().sqrt().item())


def _row(
    name: str, ours: Tensor, gold: Tensor, g: Tensor, error: Tensor, single: Tensor, along: Tensor, rounding: float
) -> Row:
    unit = g.square().mean().sqrt().item() or 1.0
    displaced = _displaced(ours, gold)
    if displaced is not None:
        share, is_along, worst = math.inf, False, displaced
    else:
        is_along = bool(along.max() > single.max())
        share = max(along.max().item(), single.max().item())
        worst = (int(along.argmax()),) if is_along else _coordinates(_unrows(single, gold).argmax(), gold.shape)
    rms, largest = error.square().mean().sqrt().item(), error.abs().max().item()
    return Row(name, share, is_along, worst, rms / unit, rounding / unit, largest / unit)


def _shares(error: Tensor, own: Tensor, floor: Tensor) -> Tensor:
    """Each error over what is allowed there; rows are channels, `own` the mean squared error of the disturbed runs."""
    channel = own.mean(1, keepdim=True)
    at_least = torch.maximum(own, channel)
    pooled = own.mean().expand_as(own)
    pooled = torch.where(at_least > 0, torch.minimum(pooled, POOLED_AT_MOST * at_least), pooled)
    variance = (at_least + pooled) / 2 + floor.square()
    deviations = SAMPLED * math.sqrt(2 * math.log(4 * error.numel() / CHANCE))
    return torch.where(error == 0, 0.0, error.abs() / (deviations * variance.sqrt()))


def _floor_along(floor: float, g: Tensor, norm: Tensor) -> Tensor:
    """Independent roundings of a channel's elements, along the channel."""
    return (floor * norm / math.sqrt(g.shape[1]))[:, None]


def _all_finite(tensor: Tensor) -> bool:
    # what is not finite stays so in a sum, and one pass tells
    return bool(tensor.sum(dtype=torch.float64).isfinite())


def _errors(output: Tensor, gold: Tensor) -> Tensor:
    """output - gold in float64, zero where either is not finite."""
    output = output.detach().to(gold.device)
    error = output.double() - gold
    return error if _all_finite(error) else error.nan_to_num_(0, 0, 0)


def _displaced(output: Tensor, gold: Tensor) -> tuple[int, ...] | None:
    """The first place where one is NaN or infinite and the other is not the same; None where there is none."""
    output = output.detach().to(gold.device)
    if _all_finite(output) and _all_finite(gold):
        return None
    same = (output.isfinite() & gold.isfinite()) | (output.isnan() & gold.isnan()) | (output.double() == gold)
    return None if same.all() else _coordinates((~same).byte().argmax(), gold.shape)


def _rows(tensor: Tensor) -> Tensor:
    """(channels, elements of each)."""
    if tensor.dim() == 4:
        tensor = tensor.transpose(0, 1)
    return tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)


def _unrows(rows: Tensor, like: Tensor) -> Tensor:
    if like.dim() != 4:
        return rows.reshape(like.shape)
    n, c, *extents = like.shape
    return rows.reshape(c, n, *extents).transpose(0, 1)


def _coordinates(index: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(index, tuple(shape)))


def _require_comparable(name: str, ours: Tensor, gold: Tensor) -> None:
    if ours.shape != gold.shape:
        raise ValueError(f"{name}: ours has shape {tuple(ours.shape)} where float64's has {tuple(gold.shape)}")
    if not ours.numel():
        raise ValueError(f"{name}: an empty output proves nothing, got shape {tuple(ours.shape)}")
    if not ours.is_floating_point() or gold.dtype != torch.float64:
        raise ValueError(f"{name}: needs a floating-point output and one in float64, got {ours.dtype} and {gold.dtype}")
    if _same(ours, gold):
        raise ValueError(f"{name}: an output is compared with itself, which proves nothing")


def _require_reference(name: str, ours: Tensor, gold: Tensor, other: Tensor) -> None:
    if other.shape != gold.shape or other.dtype != ours.dtype:
        raise ValueError(
            f"{name}: ours is {tuple(ours.shape)} in {ours.dtype}, the reference {tuple(other.shape)} in {other.dtype}"
        )
    if _same(ours, other):
        raise ValueError(f"{name}: an output is compared with itself, which proves nothing")
    at = _displaced(other, gold)
    if at is not None:
        raise ValueError(
            f"{name}: the reference in {other.dtype} is {other[at].item()} at {list(at)}, where float64 is"
            f" {gold[at].item():.6g}: it cannot judge; use a wider dtype, or inputs that do not overflow"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.data_ptr() == other.data_ptr() and one.device == other.device)


def table(rows: Sequence[Row]) -> str:
    """The rows as text: each error beside that of rounding, and the worst as a share of what is allowed."""
    width = max([8, *(len(row.name) for row in rows)])
    heads = ("RMS ours", "of rounding", "max ours", "of limit")
    lines = [f"{'output':{width}}" + "".join(f"{head:>13}" for head in heads)]
    for row in rows:
        numbers = "".join(f"{number:13.2e}" for number in (row.rms_ours, row.rms_rounding, row.max_ours))
        what = "channel" if row.along else "worst at"
        verdict = "" if row.passed else f"  FAILED, {what} {list(row.worst)}"
        lines.append(f"{row.name:{width}}{numbers}{row.share:13.3g}{verdict}")
    return "\n".join(lines)
