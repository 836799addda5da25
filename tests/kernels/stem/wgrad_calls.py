"""Calls of the emulated stem_wgrad, and what float64 says of them: for test_wgrad.py and its planted faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.conv1x1.forward_calls import assert_guard_intact, guarded
from tests.kernels.conv3x3.dgrad_calls import bn_backward
from tests.kernels.conv3x3.wgrad_calls import assert_products
from tests.kernels.stem import forward_calls as stem_calls
from tests.kernels.stem.forward_calls import CHANNELS, FILTERS, SIZE, WINDOW, nchw
from tests.support.emulated import Library

WEIGHT = (FILTERS, SIZE, SIZE, CHANNELS)


@dataclass(frozen=True)
class Case(stem_calls.Case):
    """`batch`: the batch's statistics, with z, b and c; `splits`, not `blocks`, share the tiles."""

    batch: bool = True
    splits: int = 1

    def __str__(self) -> str:
        statistics = "batch" if self.batch else "constant"
        return f"{self.n}x{self.h}x{self.w}-{str(self.dtype)[6:]}-{statistics}-splits{self.splits}-seed{self.seed}"


@dataclass
class Inputs:
    """g and z (n, p, q, 64), x (n, h, w, 3); vectors float32; z, b and c None with constant statistics."""

    g: Tensor
    z: Tensor | None
    a: Tensor
    b: Tensor | None
    c: Tensor | None
    x: Tensor


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.h * 1009 + case.w)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return Inputs(
        normal(*case.output_size).to(case.dtype),
        normal(*case.output_size).to(case.dtype) if case.batch else None,
        1 + 0.3 * normal(FILTERS),
        0.3 * normal(FILTERS) if case.batch else None,
        normal(FILTERS) if case.batch else None,
        stem_calls.images(case, generator),
    )


def run(library: Library, case: Case, inputs: Inputs) -> Tensor:
    """The partials (splits, 64, 7, 7, 3)."""
    partials, buffer = guarded((case.splits, *WEIGHT), torch.float32)
    library.stem_wgrad(inputs.g, inputs.z, inputs.a, inputs.b, inputs.c, inputs.x, partials, case.splits,
        *case.extents, case.seed, case.workers,
    )  # fmt: skip
    assert_guard_intact(buffer)
    return partials


def loaded_bytes(library: Library) -> tuple[int, int]:
    """Bytes of g and z, and of x, that the last run took out of global memory."""
    return library.loaded_bytes(), library.loaded_element_bytes()


def expected(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """dW (64, 7, 7, 3) in float64, and the same of absolute values."""

    def correlation(x: Tensor, dz: Tensor) -> Tensor:
        size = (FILTERS, CHANNELS, SIZE, SIZE)
        return torch.nn.grad.conv2d_weight(nchw(x), size, nchw(dz), **WINDOW).permute(0, 2, 3, 1)

    x, dz = inputs.x.double(), bn_backward(case, inputs)
    return correlation(x, dz), correlation(x.abs(), dz.abs())


def check(library: Library, case: Case) -> Tensor:
    """Runs a case and holds the sum of its partials to float64; returns the partials."""
    inputs = draw(case)
    partials = run(library, case, inputs)
    assert_products(partials, *expected(case, inputs), inputs.g)
    return partials
