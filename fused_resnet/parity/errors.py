"""The error of an output against float64, beside a baseline's, and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One output's errors against float64, in units of the RMS of the float64 output."""

    name: str
    rms_ours: float
    rms_baseline: float
    rms_allowed: float
    max_ours: float
    max_baseline: float
    max_allowed: float
    worst: tuple[int, ...]

    @property
    def passed(self) -> bool:
        return self.rms_ours <= self.rms_allowed and self.max_ours <= self.max_allowed


def _relative_error(output: Tensor, gold: Tensor, unit: Tensor) -> Tensor:
    """|output - gold| / unit; zero where both are the same infinity or both NaN, infinite where only one of them is."""
    output = output.detach().to(gold.device, torch.float64)
    error = (output - gold).abs() / unit
    same = (output == gold) | (output.isnan() & gold.isnan())
    return torch.where(same, 0.0, torch.where(error.isnan(), torch.inf, error))


def compare(name: str, ours: Tensor, baseline: Tensor, gold: Tensor) -> Row:
    """The errors of `ours` and `baseline`, two outputs in one dtype, against `gold`, the same output in float64.

    Allowed is FACTOR times the baseline's error plus what rounding alone may do: for the RMS error one rounding of the
    dtype relative to the output's RMS; for the largest error two of its largest value (of the product with the scale
    and of the sum with shift and residual).

    Raises:
        ValueError: the three differ in shape, or ours and the baseline in dtype.
    """
    if not ours.shape == baseline.shape == gold.shape:
        shapes = f"{tuple(ours.shape)}, {tuple(baseline.shape)} and {tuple(gold.shape)}"
        raise ValueError(f"{name}: ours, baseline and gold must have one shape, got {shapes}")
    if ours.dtype != baseline.dtype:
        raise ValueError(f"{name}: ours is {ours.dtype} where the baseline is {baseline.dtype}")
    gold = gold.detach().to(torch.float64)
    finite = gold[gold.isfinite()]
    unit = finite.square().mean().sqrt() if finite.numel() else gold.new_ones(())
    unit = torch.where(unit > 0, unit, 1.0)
    peak = finite.abs().max() / unit if finite.numel() else gold.new_zeros(())

    def rms_max_worst(output: Tensor) -> tuple[float, float, tuple[int, ...]]:
        error = _relative_error(output, gold, unit)
        if not error.numel():
            return 0.0, 0.0, ()
        worst = torch.unravel_index(error.argmax(), error.shape)
        return error.square().mean().sqrt().item(), error.max().item(), tuple(int(index) for index in worst)

    rounding = torch.finfo(ours.dtype).eps
    rms_ours, max_ours, worst = rms_max_worst(ours)
    rms_baseline, max_baseline, _ = rms_max_worst(baseline)
    return Row(
        name,
        rms_ours,
        rms_baseline,
        FACTOR * rms_baseline + rounding,
        max_ours,
        max_baseline,
        FACTOR * max_baseline + 2 * rounding * peak.item(),
        worst,
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as text, each error beside what is allowed."""
    heads = ("RMS ours", "baseline", "allowed", "max ours", "baseline", "allowed")
    lines = [f"{'output':8}" + "".join(f"{head:>11}" for head in heads)]
    for row in rows:
        numbers = (row.rms_ours, row.rms_baseline, row.rms_allowed, row.max_ours, row.max_baseline, row.max_allowed)
        verdict = "" if row.passed else f"  FAILED, worst at {list(row.worst)}"
        lines.append(f"{row.name:8}" + "".join(f"{number:11.2e}" for number in numbers) + verdict)
    return "\n".join(lines)
