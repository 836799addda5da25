"""Calls of the emulated conv1x1_gram_finish, and what float64 says of them: for its tests and its planted faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.conv1x1 import gram_calls as conv1x1_gram_calls
from tests.kernels.conv1x1.forward_calls import ELEMENT_TYPES, UNIT_ROUNDOFF, assert_guard_intact, guarded
from tests.support.emulated import Library


@dataclass(frozen=True)
class Case:
    """`rows` shares of the pixels; every third channel's mean is `offset` deviations from zero; `seed` is the
    schedule."""

    n: int
    h: int
    w: int
    c: int
    dtype: torch.dtype = torch.bfloat16
    prologue: bool = True
    offset: float = 0.0
    rows: int = 1
    seed: int = 1
    workers: int = 1
    stride: int = 1  # as conv1x1_gram_calls has it

    def __str__(self) -> str:
        prologue, offset = "-prologue" * self.prologue, f"-offset{self.offset:g}" if self.offset else ""
        return f"{self.n}x{self.h}x{self.w}x{self.c}-{str(self.dtype)[6:]}{prologue}{offset}-rows{self.rows}"

    @property
    def size(self) -> tuple[int, ...]:
        return self.n, self.h, self.w, self.c


@dataclass
class Inputs:
    """Maps NHWC in the case's dtype, vectors and the quadratic float32; None where the case has none."""

    t: Tensor
    z: Tensor
    in_scale: Tensor | None
    in_shift: Tensor | None
    center: Tensor
    quadratic: Tensor
    constant: Tensor
    below_mean: Tensor


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.c * 1013 + case.h)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    map_ = conv1x1_gram_calls.draw(case)
    center = (case.offset * (torch.arange(case.c) % 3 == 0)).to(case.dtype).float()
    quadratic = normal(case.c, case.c) / case.c**0.5
    t = normal(*case.size).to(case.dtype)
    return Inputs(t, map_.z, map_.in_scale, map_.in_shift, center, quadratic, normal(case.c), normal(case.c))


def parts(quadratic: Tensor, dtype: torch.dtype) -> Tensor:
    """Its leading and its trailing bits, (2, c, c)."""
    leading = quadratic.to(dtype)
    return torch.stack((leading, (quadratic - leading.float()).to(dtype)))


def run(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """g and the partials."""
    g, g_buffer = guarded(case.size, case.dtype)
    partials, partials_buffer = guarded((case.rows, 2, case.c), torch.float32)
    library.conv1x1_gram_finish(inputs.t, inputs.z, inputs.in_scale, inputs.in_shift, inputs.center,
        parts(inputs.quadratic, case.dtype), inputs.constant, inputs.below_mean, g, partials, case.rows,
        ELEMENT_TYPES[case.dtype], *case.size, case.seed, case.workers,
    )  # fmt: skip
    assert_guard_intact(g_buffer)
    assert_guard_intact(partials_buffer)
    return g, partials


def reference(case: Case, inputs: Inputs) -> Tensor:
    """g in float64, (pixels, c), of a as it is rounded and the quadratic as it is."""
    a = conv1x1_gram_calls.activations(case, inputs)
    centered = (a.float() - inputs.center).to(case.dtype).double()
    t = inputs.t.reshape(-1, case.c).double()
    g = t + centered @ inputs.quadratic.double() + inputs.constant.double()
    return torch.where(a <= 0, 0, g) if case.prologue else g


def check(library: Library, case: Case) -> None:
    inputs = draw(case)
    g, partials = run(library, case, inputs)
    g = g.reshape(-1, case.c).double()
    # what is left of the quadratic behind its trailing bits, and float32's sums
    left = 1e-5 + UNIT_ROUNDOFF[case.dtype] ** 2 * 8
    torch.testing.assert_close(g, reference(case, inputs), rtol=UNIT_ROUNDOFF[case.dtype], atol=left)
    deviation = inputs.z.reshape(-1, case.c).double() - inputs.below_mean.double()
    sums = partials.double().sum(0)
    for got, expected in zip(sums, (g.sum(0), (g * deviation).sum(0)), strict=True):
        scale = 1e-5 * len(g) ** 0.5 * max(case.offset, 1)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=scale)
