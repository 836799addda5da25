"""Calls of the emulated conv1x1, and what float64 says of them: for test_forward.py and its planted faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.emulated import Library

ELEMENT_TYPES = {torch.bfloat16: 0, torch.float16: 1}
UNIT_ROUNDOFF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
ACCUMULATED = 2e-5  # absolute error of float32 sums of a few hundred products of order 1, and of what is made of them
SENTINEL = 7.0  # stands around every output
GUARD = 512  # elements of it on either side


@dataclass(frozen=True)
class Case:
    """A convolution; `blocks` is the number of multiprocessors, `seed` the schedule."""

    n: int
    h: int
    w: int
    c: int
    k: int
    stride: int = 1
    dtype: torch.dtype = torch.bfloat16
    prologue: bool = False
    residual: bool = False
    relu: bool = True
    splits: int = 1
    blocks: int = 2
    seed: int = 1
    workers: int = 1
    weights_ready: bool = False
    offset: float = 0.0  # of the input's mean, in deviations

    def __str__(self) -> str:
        flags = "".join(f"-{name}" for name in ("prologue", "residual") if getattr(self, name))
        splits = f"-split{self.splits}" if self.splits > 1 else ""
        size = f"{self.n}x{self.h}x{self.w}x{self.c}-{self.k}-s{self.stride}"
        return f"{size}-{str(self.dtype)[6:]}{flags}{splits}-seed{self.seed}"

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        return self.n, -(-self.h // self.stride), -(-self.w // self.stride), self.k

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.n, self.h, self.w, self.c, self.k, self.stride

    @property
    def schedule(self) -> tuple[int, int, int]:
        return self.blocks, self.seed, self.workers


@dataclass
class Inputs:
    """x (n, h, w, c), weight (k, c), residual (n, p, q, k); vectors float32; None where the case has none."""

    x: Tensor
    weight: Tensor
    in_scale: Tensor | None
    in_shift: Tensor | None
    scale: Tensor
    shift: Tensor
    residual: Tensor | None


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.c * 1009 + case.k)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return Inputs(
        (normal(case.n, case.h, case.w, case.c) + case.offset).to(case.dtype),
        (normal(case.k, case.c) / case.c**0.5).to(case.dtype),
        1 + 0.3 * normal(case.c) if case.prologue else None,
        normal(case.c) if case.prologue else None,
        1 + 0.3 * normal(case.k),
        normal(case.k),
        normal(*case.output_size).to(case.dtype) if case.residual else None,
    )


def convolved(case: Case, inputs: Inputs) -> Tensor:
    """z in float64, of the prologue as rounded."""
    a = inputs.x[:, :: case.stride, :: case.stride].double()
    if case.prologue:
        a = torch.relu(a * inputs.in_scale.double() + inputs.in_shift.double()).to(case.dtype).double()
    return a @ inputs.weight.double().T


def activated(case: Case, inputs: Inputs) -> Tensor:
    """y in float64."""
    y = convolved(case, inputs) * inputs.scale.double() + inputs.shift.double()
    if case.residual:
        y = y + inputs.residual.double()
    return torch.relu(y) if case.relu else y


def guarded(size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A tensor full of NaN, and the buffer around it whose margins must stay what they are."""
    count = torch.Size(size).numel()
    buffer = torch.full((count + 2 * GUARD,), SENTINEL, dtype=dtype)
    inner = buffer[GUARD : GUARD + count]
    inner.fill_(torch.nan)
    return inner.view(size), buffer


def assert_guard_intact(buffer: Tensor) -> None:
    assert (buffer[:GUARD] == SENTINEL).all() and (buffer[-GUARD:] == SENTINEL).all(), "written outside of the output"


def run_act(library: Library, case: Case, inputs: Inputs) -> Tensor:
    """y."""
    y, buffer = guarded(case.output_size, case.dtype)
    products = arrivals = None
    if case.splits > 1:
        tiles = split_tiles(library, case)
        products = torch.full((tiles, case.splits, 8192), torch.nan)
        arrivals = torch.zeros(tiles, dtype=torch.int32)
    library.conv1x1_act(inputs.x, inputs.weight, inputs.in_scale, inputs.in_shift, inputs.scale, inputs.shift,
        inputs.residual, y, products, arrivals, case.splits, ELEMENT_TYPES[case.dtype], *case.sizes, case.relu,
        case.weights_ready, *case.schedule,
    )  # fmt: skip
    assert_guard_intact(buffer)
    assert arrivals is None or not arrivals.any(), "arrivals are not zero again"
    return y


def run_stats(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """z and the partials."""
    z, buffer = guarded(case.output_size, case.dtype)
    rows = library.conv1x1_partial_rows(case.n, case.h, case.w, case.stride)
    partials, partials_buffer = guarded((rows, 3, case.k), torch.float32)
    library.conv1x1_stats(inputs.x, inputs.weight, inputs.in_scale, inputs.in_shift, z, partials,
        ELEMENT_TYPES[case.dtype], *case.sizes, *case.schedule,
    )  # fmt: skip
    assert_guard_intact(buffer)
    assert_guard_intact(partials_buffer)
    return z, partials


def split_tiles(library: Library, case: Case) -> int:
    return library.conv1x1_split_tiles(case.n, case.h, case.w, case.k, case.stride)


def loaded_bytes(library: Library) -> int:
    """Bytes of x that the last run took out of global memory."""
    return library.loaded_bytes()


def assert_rounded(result: Tensor, expected: Tensor) -> None:
    """`result` is `expected` (float64) rounded to its dtype, but for float32's own error."""
    torch.testing.assert_close(result.double(), expected, rtol=UNIT_ROUNDOFF[result.dtype], atol=ACCUMULATED)


def check_act(library: Library, case: Case) -> None:
    inputs = draw(case)
    assert_rounded(run_act(library, case, inputs), activated(case, inputs))


def check_stats(library: Library, case: Case) -> None:
    inputs = draw(case)
    z, partials = run_stats(library, case, inputs)
    assert_rounded(z, convolved(case, inputs))
    count, mean, m2 = partials.double().unbind(1)
    values = z.double().reshape(-1, case.k)
    assert (count.sum(0) == len(values)).all()
    total = (count * mean).sum(0) / count.sum(0)
    m2 = (m2 + count * (mean - total) ** 2).sum(0)
    var, expected = torch.var_mean(values, dim=0, correction=0)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m2 / len(values), var, rtol=1e-5, atol=1e-12)
