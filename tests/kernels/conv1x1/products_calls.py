"""Calls of the emulated conv1x1_products, and what float64 says of them: for its tests and its planted faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.conv1x1.forward_calls import ELEMENT_TYPES, UNIT_ROUNDOFF, assert_guard_intact, guarded
from tests.support.emulated import Library


@dataclass(frozen=True)
class Case:
    """`rows` blocks of the GPU, or clusters, for each block of channels; `seed` is the schedule."""

    n: int
    h: int
    w: int
    c: int
    k: int
    stride: int = 1
    dtype: torch.dtype = torch.bfloat16
    prologue: bool = True
    masked: bool = True
    rows: int = 2
    seed: int = 1
    workers: int = 1

    def __str__(self) -> str:
        flags = "".join(f"-{name}" for name in ("prologue", "masked") if getattr(self, name))
        size = f"{self.n}x{self.h}x{self.w}x{self.c}-{self.k}-s{self.stride}"
        return f"{size}-{str(self.dtype)[6:]}{flags}-rows{self.rows}"

    @property
    def pixels(self) -> tuple[int, int, int]:
        return self.n, -(-self.h // self.stride), -(-self.w // self.stride)


@dataclass
class Inputs:
    """Maps NHWC in the case's dtype, vectors float32; None where the case has none."""

    grad: Tensor
    out: Tensor | None
    z: Tensor
    in_scale: Tensor | None
    in_shift: Tensor | None
    center: Tensor
    weight: Tensor


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.c * 1009 + case.k)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return Inputs(
        normal(*case.pixels, case.k).to(case.dtype),
        normal(*case.pixels, case.k).relu().to(case.dtype) if case.masked else None,
        normal(case.n, case.h, case.w, case.c).to(case.dtype),
        1 + 0.3 * normal(case.c) if case.prologue else None,
        normal(case.c) if case.prologue else None,
        torch.where(normal(case.c) > 0, normal(case.c), 0).to(case.dtype).float(),
        (normal(case.k, case.c) / case.k**0.5).to(case.dtype),
    )


def run(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """M, the sum of g, and t."""
    count = case.k * (case.c + 1)
    t, t_buffer = guarded((*case.pixels, case.c), case.dtype)
    products, products_buffer = guarded((count,), torch.float32)
    partials, partials_buffer = guarded((case.rows, count), torch.float32)
    library.conv1x1_products(inputs.grad, inputs.out, inputs.z, inputs.in_scale, inputs.in_shift,
        inputs.center, inputs.weight, t, products, partials, case.rows, ELEMENT_TYPES[case.dtype], case.n, case.h,
        case.w, case.c, case.k, case.stride, case.seed, case.workers,
    )  # fmt: skip
    for buffer in (t_buffer, products_buffer, partials_buffer):
        assert_guard_intact(buffer)
    return products[: case.k * case.c].view(case.k, case.c), products[case.k * case.c :], t


def reference(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64, of a as it is rounded."""
    g = inputs.grad.double()
    if case.masked:
        g = torch.where(inputs.out <= 0, 0, g)
    a = inputs.z[:, :: case.stride, :: case.stride].double()
    if case.prologue:
        a = torch.relu(a * inputs.in_scale.double() + inputs.in_shift.double()).to(case.dtype).double()
    a = (a - inputs.center.double()).to(case.dtype).double()
    g, a = g.reshape(-1, case.k), a.reshape(-1, case.c)
    return g.T @ a, g.sum(0), (g @ inputs.weight.double()).view(*case.pixels, case.c)


def check(library: Library, case: Case) -> None:
    inputs = draw(case)
    (m, sum_g, t), (expected_m, expected_sum, expected_t) = run(library, case, inputs), reference(case, inputs)
    pixels = torch.Size(case.pixels).numel()
    torch.testing.assert_close(m.double(), expected_m, rtol=1e-5, atol=1e-5 * pixels**0.5)
    torch.testing.assert_close(sum_g.double(), expected_sum, rtol=1e-5, atol=1e-5 * pixels**0.5)
    torch.testing.assert_close(t.double(), expected_t, rtol=UNIT_ROUNDOFF[case.dtype], atol=2e-5)
