"""Calls of the emulated conv1x1_gram, and what float64 says of them: for its tests and its planted faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.conv1x1.forward_calls import ELEMENT_TYPES, UNIT_ROUNDOFF, assert_guard_intact, guarded
from tests.support.emulated import Library

TILE = 128  # pixels


@dataclass(frozen=True)
class Case:
    """`rows` shares of the pixels; every third channel's mean is `offset` deviations from zero; `seed` is the
    schedule."""

    n: int
    h: int
    w: int
    c: int
    stride: int = 1
    dtype: torch.dtype = torch.bfloat16
    prologue: bool = True
    offset: float = 0.0
    rows: int = 2
    seed: int = 1
    workers: int = 1

    def __str__(self) -> str:
        prologue, offset = "-prologue" * self.prologue, f"-offset{self.offset:g}" if self.offset else ""
        size = f"{self.n}x{self.h}x{self.w}x{self.c}-s{self.stride}"
        return f"{size}-{str(self.dtype)[6:]}{prologue}{offset}-rows{self.rows}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.n, self.h, self.w, self.c, self.stride


@dataclass
class Inputs:
    """z NHWC in the case's dtype, vectors float32; None where the case has none."""

    z: Tensor
    in_scale: Tensor | None
    in_shift: Tensor | None


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.c * 1009 + case.h)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    far = case.offset * (torch.arange(case.c) % 3 == 0)
    z = normal(case.n, case.h, case.w, case.c)
    if case.prologue:
        scale = 1 + 0.1 * normal(case.c)
        return Inputs(z.to(case.dtype), scale, 0.3 * normal(case.c) + far)
    return Inputs((z + far).to(case.dtype), None, None)


def run(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """center, total and gram."""
    c = case.c
    outputs, buffers = zip(*(guarded(size, torch.float32) for size in ((c,), (c,), (c, c), (case.rows, c + 1, c))))
    library.conv1x1_gram(inputs.z, inputs.in_scale, inputs.in_shift, *outputs, case.rows,
        ELEMENT_TYPES[case.dtype], *case.sizes, case.seed, case.workers,
    )  # fmt: skip
    for buffer in buffers:
        assert_guard_intact(buffer)
    return outputs[:3]


def activations(case: Case, inputs: Inputs) -> Tensor:
    """prologue(z) at every stride-th pixel, (pixels, c) in the case's dtype, as rounded by one fused multiply-add."""
    a = inputs.z[:, :: case.stride, :: case.stride].reshape(-1, case.c)
    if case.prologue:
        a = torch.relu(a.double() * inputs.in_scale.double() + inputs.in_shift.double()).float().to(case.dtype)
    return a


def check_center(case: Case, a: Tensor, center: Tensor) -> None:
    """The first tile's mean in channels far from zero; at stride 2 a tile is a box of pixels, and near it is enough."""
    assert torch.equal(center.to(case.dtype).float(), center)
    std, mean = torch.std_mean(a[:TILE].double(), dim=0, correction=0)
    far = mean.abs() > 4 * std
    assert torch.equal(center != 0, far & (mean != 0)) and (not case.offset or far.any())
    error = (center - mean).abs()
    assert (error <= (mean.abs() * UNIT_ROUNDOFF[case.dtype] if case.stride == 1 else 2 * std))[far].all()


def check(library: Library, case: Case) -> None:
    inputs = draw(case)
    center, total, gram = run(library, case, inputs)
    a = activations(case, inputs)
    check_center(case, a, center)
    a = (a.float() - center).to(case.dtype).double()
    atol = 1e-5 * len(a) ** 0.5
    torch.testing.assert_close(total.double(), a.sum(0), rtol=1e-5, atol=atol)
    torch.testing.assert_close(gram.double(), a.T @ a, rtol=1e-5, atol=atol)


def run_exact(library: Library, case: Case, inputs: Inputs, center: Tensor, flag: int | None) -> Tensor:
    """The slices of conv1x1_gram_exact, (rows, C + 1, C) float64, NaN where it wrote nothing."""
    partials, buffer = guarded((case.rows, case.c + 1, case.c), torch.float64)
    raised = None if flag is None else torch.tensor([flag], dtype=torch.int32)
    library.conv1x1_gram_exact(inputs.z, inputs.in_scale, inputs.in_shift, center, raised, partials,
        case.rows, ELEMENT_TYPES[case.dtype], *case.sizes, case.seed, case.workers,
    )  # fmt: skip
    assert_guard_intact(buffer)
    return partials


def check_exact(library: Library, case: Case) -> None:
    """To float64's rounding where the flag is raised, and nothing at all where it is not."""
    inputs = draw(case)
    a = activations(case, inputs)
    std, mean = torch.std_mean(a.double(), dim=0, correction=0)
    center = torch.where(mean.abs() > 4 * std, mean, 0).to(case.dtype).float()
    a = (a.float() - center).to(case.dtype).double()
    slices = run_exact(library, case, inputs, center, 1)
    torch.testing.assert_close(slices[:, -1].sum(0), a.sum(0), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(slices[:, :-1].sum(0), a.T @ a, rtol=1e-12, atol=1e-10)
    assert run_exact(library, case, inputs, center, 0).isnan().all()
