"""Calls of the emulated conv3x3_halo_split, held to float64: for its tests and its planted faults."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tests.kernels.conv3x3 import forward_calls as halo
from tests.kernels.conv3x3.forward_calls import ELEMENT_TYPES, Inputs, check_map, expected, make_inputs
from tests.support import emulated
from tests.support.emulated import Library

SPLIT_PRODUCTS = 4096
SENTINEL = 7.0  # stands behind what a kernel may write


@dataclasses.dataclass(frozen=True)
class Case(halo.Case):
    """One call of the kernel for small maps."""

    prologue: str = ""
    epilogue: str = "act"
    splits: int = 1
    workers: int = 1

    def __str__(self) -> str:
        return f"{super().__str__()}-split{self.splits}"

    @property
    def extents(self) -> tuple[int, ...]:
        return self.n, self.h, self.w, self.channels, self.k, self.stride


def ask(question: str, *arguments: int) -> int:
    return getattr(emulated.library("kernels/conv3x3/split/host.cpp"), question)(*arguments)


def run(case: Case, inputs: Inputs, library: Library | None = None) -> Tensor:
    """y. The work space is NaN before, and has a row behind it that the kernel must not touch."""
    library = library or emulated.library("kernels/conv3x3/split/host.cpp")
    y = torch.full(case.out_size, torch.nan, dtype=case.dtype)
    products = arrivals = None
    if case.splits > 1:
        tiles = ask("conv3x3_halo_split_tiles", *case.extents)
        products = torch.full((tiles * case.splits + 1, SPLIT_PRODUCTS), torch.nan)
        products[-1] = SENTINEL
        arrivals = torch.zeros(tiles + 1, dtype=torch.int32)
    residual = inputs.residual if case.residual else None
    library.conv3x3_halo_split_act(inputs.x, inputs.weight, inputs.scale, inputs.shift, residual, y, products,
        arrivals, case.splits, ELEMENT_TYPES[case.dtype], *case.extents, int(case.relu), int(case.weights_ready),
        case.blocks, case.seed, case.workers,
    )  # fmt: skip
    if case.splits > 1:
        assert (products[-1] == SENTINEL).all(), "products stored behind those of the last tile"
        assert not arrivals.any(), "arrivals are not zero again"
    return y


def check(case: Case, library: Library | None = None) -> None:
    inputs = make_inputs(case)
    check_map(case, run(case, inputs, library), *expected(case, inputs))
