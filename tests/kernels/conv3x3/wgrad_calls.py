"""Calls of the emulated conv3x3_halo_wgrad, and what they should give."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tests.kernels.conv3x3 import dgrad_calls as conv3x3_halo_dgrad_calls
from tests.kernels.conv3x3 import forward_calls as conv3x3_halo_calls
from tests.kernels.conv3x3.forward_calls import ELEMENT_TYPES, PACKED
from tests.support import emulated
from tests.support.emulated import Library


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; h and w are those of x, maps are NHWC. `prologue` of x: "", "float32" or "packed"."""

    channels: int
    stride: int
    n: int
    h: int
    w: int
    dtype: torch.dtype = torch.bfloat16
    batch: bool = True  # the batch's statistics: with z, b and c
    prologue: str = "float32"
    splits: int = 1
    seed: int = 0
    filters: int = 0  # 0: as many as channels

    def __str__(self) -> str:
        channels = f"{self.channels}to{self.filters}ch" if self.filters else f"{self.channels}ch"
        words = [channels, f"stride{self.stride}", f"{self.n}x{self.h}x{self.w}"]
        words += [str(self.dtype).removeprefix("torch."), "batch" if self.batch else "constant", self.prologue or "raw"]
        return "-".join([*words, f"splits{self.splits}", f"seed{self.seed}"])

    @property
    def k(self) -> int:
        return self.filters or self.channels


@dataclasses.dataclass
class Inputs:
    """Of both directions' cases: `g`, `z`, `a`, `b`, `c` make dz, `x`, `in_scale`, `in_shift` the activations."""

    g: Tensor
    z: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    x: Tensor
    in_scale: Tensor
    in_shift: Tensor


def make_inputs(case: Case) -> Inputs:
    backward = conv3x3_halo_dgrad_calls.make_inputs(
        conv3x3_halo_dgrad_calls.Case(
            case.channels, case.stride, case.n, case.h, case.w, case.dtype, filters=case.filters
        )
    )
    forward = conv3x3_halo_calls.make_inputs(
        conv3x3_halo_calls.Case(case.channels, case.stride, case.n, case.h, case.w, case.dtype)
    )
    gradient = (backward.g, backward.z, backward.a, backward.b, backward.c)
    return Inputs(*gradient, forward.x, forward.in_scale, forward.in_shift)


def run(case: Case, inputs: Inputs, library: Library | None = None) -> Tensor:
    """The partials (splits, K, 3, 3, C); what follows them must not be touched."""
    library = library or emulated.library("kernels/conv3x3/wgrad/host.cpp")
    partials = torch.full((case.splits + 1, case.k, 3, 3, case.channels), torch.nan)
    gradient = (inputs.g, *((inputs.z, inputs.a, inputs.b, inputs.c) if case.batch else (None, inputs.a, None, None)))
    norm = (inputs.in_scale, inputs.in_shift) if case.prologue else (None, None)
    limit = PACKED if case.prologue == "packed" else 0.0
    sizes = (ELEMENT_TYPES[case.dtype], case.n, case.h, case.w, case.channels, case.k, case.stride)
    library.conv3x3_halo_wgrad(*gradient, inputs.x, *norm, limit, partials, case.splits, *sizes, case.seed, 1)
    assert partials[case.splits].isnan().all(), "stored behind the partials"
    return partials[: case.splits]


def loaded_bytes() -> int:
    """Bytes of g, z and x that the last run's TMA loads took out of global memory."""
    return emulated.library("kernels/conv3x3/wgrad/host.cpp").loaded_bytes()


def expected(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """dW (K, 3, 3, C) in float64, and the same of absolute values."""
    backward = conv3x3_halo_dgrad_calls
    dz = backward.bn_backward(backward.Case(case.channels, 1, 1, 1, 1, case.dtype, case.batch), inputs)
    forward = conv3x3_halo_calls.Case(case.channels, 1, 1, 1, 1, case.dtype, case.prologue)
    a = conv3x3_halo_calls.activation(forward, inputs)

    def correlation(x: Tensor, grad: Tensor) -> Tensor:
        size = (case.k, case.channels, 3, 3)
        x, grad = x.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)
        return torch.nn.grad.conv2d_weight(x, size, grad, case.stride, 1).permute(0, 2, 3, 1)

    return correlation(a, dz), correlation(a.abs(), dz.abs())


def assert_products(partials: Tensor, exact: Tensor, size: Tensor, g: Tensor) -> None:
    """The sum of `partials` is `exact` to float32's accuracy; `size` is that of the terms' magnitudes, one a pixel."""
    # A sum of n terms in float32 rounds n times, by at most 2^-24 of what it has come to; the errors are independent.
    bound = 2.0**-24 * (2 + g[..., 0].numel() ** 0.5) * size + 1e-30
    worst = ((partials.double().sum(0) - exact).abs() / bound).max().item()
    assert worst <= 1, f"dW is off by {worst:.3g} times float32's share of the sum of its terms' sizes"


def check(case: Case, library: Library | None = None) -> Tensor:
    """Runs a case and holds the sum of its partials to float64; returns the partials."""
    inputs = make_inputs(case)
    partials = run(case, inputs, library)
    assert_products(partials, *expected(case, inputs), inputs.g)
    return partials
