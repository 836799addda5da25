"""Calls of the emulated stem, and what float64 says of them: for test_forward.py and its planted faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.conv1x1.forward_calls import (
    ACCUMULATED,
    ELEMENT_TYPES,
    UNIT_ROUNDOFF,
    assert_guard_intact,
    assert_rounded,
    guarded,
)
from tests.support.emulated import Library

FILTERS, SIZE, CHANNELS = 64, 7, 3
WINDOW = {"stride": 2, "padding": 3}


@dataclass(frozen=True)
class Case:
    """A stem; `blocks` is the number of multiprocessors, `seed` the schedule."""

    n: int
    h: int
    w: int
    dtype: torch.dtype = torch.bfloat16
    residual: bool = False
    relu: bool = True
    blocks: int = 2
    seed: int = 1
    workers: int = 1
    offset: float = 0.0  # of the output's mean, in deviations

    def __str__(self) -> str:
        residual = "-residual" if self.residual else ""
        return f"{self.n}x{self.h}x{self.w}-{str(self.dtype)[6:]}{residual}-blocks{self.blocks}-seed{self.seed}"

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        return self.n, -(-self.h // 2), -(-self.w // 2), FILTERS

    @property
    def schedule(self) -> tuple[int, int, int]:
        return self.blocks, self.seed, self.workers

    @property
    def extents(self) -> tuple[int, int, int, int]:
        return ELEMENT_TYPES[self.dtype], self.n, self.h, self.w


@dataclass
class Inputs:
    """x (n, h, w, 3), weight (64, 7, 7, 3), residual (n, p, q, 64) or None; vectors float32."""

    x: Tensor
    weight: Tensor
    scale: Tensor
    shift: Tensor
    residual: Tensor | None


def images(case: Case, generator: torch.Generator) -> Tensor:
    """Between NaNs, at an address that nothing but an element's two bytes divides."""
    count = case.n * case.h * case.w * CHANNELS
    around = torch.full((count + 64,), torch.nan, dtype=case.dtype)
    x = around[31 : 31 + count].view(case.n, case.h, case.w, CHANNELS)
    return x.copy_(torch.randn(x.shape, generator=generator) + case.offset)


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.h * 1009 + case.w)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return Inputs(
        images(case, generator),
        (normal(FILTERS, SIZE, SIZE, CHANNELS) / (SIZE * SIZE * CHANNELS) ** 0.5).to(case.dtype),
        1 + 0.3 * normal(FILTERS),
        normal(FILTERS),
        normal(*case.output_size).to(case.dtype) if case.residual else None,
    )


def nchw(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2)


def convolved(inputs: Inputs) -> Tensor:
    """z in float64, NHWC."""
    return F.conv2d(nchw(inputs.x).double(), nchw(inputs.weight).double(), **WINDOW).permute(0, 2, 3, 1)


def activated(case: Case, inputs: Inputs) -> Tensor:
    """y in float64."""
    y = convolved(inputs) * inputs.scale.double() + inputs.shift.double()
    if case.residual:
        y = y + inputs.residual.double()
    return torch.relu(y) if case.relu else y


def run_act(library: Library, case: Case, inputs: Inputs) -> Tensor:
    """y."""
    y, buffer = guarded(case.output_size, case.dtype)
    library.stem_act(inputs.x, inputs.weight, inputs.scale, inputs.shift, inputs.residual, y, *case.extents,
        case.relu, *case.schedule,
    )  # fmt: skip
    assert_guard_intact(buffer)
    return y


def run_stats(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """z and the partials."""
    z, buffer = guarded(case.output_size, case.dtype)
    rows = library.stem_partial_rows(case.n, case.h, case.w)
    partials, partials_buffer = guarded((rows, 3, FILTERS), torch.float32)
    library.stem_stats(inputs.x, inputs.weight, z, partials, *case.extents, *case.schedule)
    assert_guard_intact(buffer)
    assert_guard_intact(partials_buffer)
    return z, partials


def loaded_bytes(library: Library) -> int:
    """Bytes of x and of the weight that the last run took out of global memory."""
    return library.loaded_element_bytes()


def check_act(library: Library, case: Case) -> None:
    inputs = draw(case)
    assert_rounded(run_act(library, case, inputs), activated(case, inputs))


def check_stats(library: Library, case: Case) -> None:
    inputs = draw(case)
    z, partials = run_stats(library, case, inputs)
    assert_rounded(z, convolved(inputs))
    count, mean, m2 = partials.double().unbind(1)
    values = z.double().reshape(-1, FILTERS)
    assert (count.sum(0) == len(values)).all()
    total = (count * mean).sum(0) / count.sum(0)
    m2 = (m2 + count * (mean - total) ** 2).sum(0)
    var, expected = torch.var_mean(values, dim=0, correction=0)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m2 / len(values), var, rtol=1e-5, atol=1e-12)


def check_nan(library: Library, case: Case) -> None:
    """NaN and infinity in the images, the filters and the residual come out where float64 has them."""
    inputs = draw(case)
    inputs.x[0, 10, 12, 1] = torch.nan
    inputs.x[0, -1, -1, 2] = torch.inf
    inputs.x[-1, 0, 25, 0] = -torch.inf
    inputs.weight[17, 3, 6, 2] = torch.nan
    if case.residual:
        inputs.residual[-1, 4, 4, 8] = torch.nan
    expected = activated(case, inputs)
    assert 0 < expected.isnan().sum() < expected.numel()
    y = run_act(library, case, inputs).double()
    torch.testing.assert_close(y, expected, rtol=UNIT_ROUNDOFF[case.dtype], atol=ACCUMULATED, equal_nan=True)
