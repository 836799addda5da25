"""Calls of the emulated conv3x3_halo, and what they should give: for test_forward.py and test_forward_faults.py."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support import emulated
from tests.support.emulated import Library

ELEMENT_TYPES = {torch.bfloat16: 0, torch.float16: 1}
MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10}
PACKED = 100.0  # a packed_limit that the scales and shifts below stay under


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; maps are NHWC. `prologue` is "", "float32" or "packed", `epilogue` "act" or "stats"."""

    channels: int
    stride: int
    n: int
    h: int
    w: int
    dtype: torch.dtype = torch.bfloat16
    prologue: str = "float32"
    epilogue: str = "stats"
    residual: bool = False
    relu: bool = True
    blocks: int = 2
    seed: int = 0
    weights_ready: bool = False
    filters: int = 0  # 0: as many as channels

    def __str__(self) -> str:
        channels = f"{self.channels}to{self.filters}ch" if self.filters else f"{self.channels}ch"
        words = [channels, f"stride{self.stride}", f"{self.n}x{self.h}x{self.w}"]
        words += [str(self.dtype).removeprefix("torch."), self.prologue or "raw", self.epilogue]
        words += ["residual"] * self.residual + ["linear"] * (self.epilogue == "act" and not self.relu)
        words += [f"blocks{self.blocks}", f"seed{self.seed}"]
        return "-".join(words)

    @property
    def k(self) -> int:
        return self.filters or self.channels

    @property
    def out_size(self) -> tuple[int, int, int, int]:
        p, q = ((extent - 1) // self.stride + 1 for extent in (self.h, self.w))
        return self.n, p, q, self.k


@dataclasses.dataclass
class Inputs:
    x: Tensor
    weight: Tensor  # (K, 3, 3, C)
    in_scale: Tensor
    in_shift: Tensor
    scale: Tensor
    shift: Tensor
    residual: Tensor


@dataclasses.dataclass
class Outputs:
    y: Tensor
    partials: Tensor | None


def make_inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.h * 100 + case.w)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    c, k = case.channels, case.k
    return Inputs(
        random(case.n, case.h, case.w, c).to(case.dtype),
        (random(k, 3, 3, c) * (2 / (9 * c)) ** 0.5).to(case.dtype),
        1 + 0.3 * random(c),
        0.5 + 0.3 * random(c),
        1 + 0.3 * random(k),
        0.5 + 0.3 * random(k),
        random(*case.out_size).to(case.dtype),
    )


def run(case: Case, inputs: Inputs, library: Library | None = None, partial_rows: int | None = None) -> Outputs:
    """Runs the kernel; a row of partials that it must not touch follows those that it may."""
    library = library or emulated.library("kernels/conv3x3/forward/host.cpp")
    n, p, q, k = case.out_size
    y = torch.full(case.out_size, torch.nan, dtype=case.dtype)
    norm = (inputs.in_scale, inputs.in_shift) if case.prologue else (None, None)
    limit = PACKED if case.prologue == "packed" else 0.0
    tail = (ELEMENT_TYPES[case.dtype], case.n, case.h, case.w, case.channels, k, case.stride)
    schedule = (case.blocks, case.seed, 1)
    if case.epilogue == "act":
        residual = inputs.residual if case.residual else None
        pointers = (inputs.x, inputs.weight, *norm, limit, inputs.scale, inputs.shift, residual, y)
        flags = (int(case.relu), int(case.weights_ready))
        library.conv3x3_halo_act(*pointers, *tail, *flags, *schedule)
        return Outputs(y, None)
    rows = partial_rows or -(-n * p * q // 128)
    partials = torch.full((rows + 1, 3, k), torch.nan)
    pointers = (inputs.x, inputs.weight, *norm, limit, y, partials, rows)
    library.conv3x3_halo_stats(*pointers, *tail, *schedule)
    assert partials[rows].isnan().all(), "stored behind the partials"
    return Outputs(y, partials[:rows])


def loaded_bytes() -> int:
    """Bytes of x that the last run's TMA loads took out of global memory."""
    return emulated.library("kernels/conv3x3/forward/host.cpp").loaded_bytes()


def _rounded_once(value: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 to the nearest number of the dtype's precision, ties to even; torch's own conversion rounds twice."""
    dropped = 52 - MANTISSA_BITS[dtype]
    bits = value.view(torch.int64)
    rounded = (bits + (1 << (dropped - 1)) - 1 + (bits >> dropped & 1)) >> dropped << dropped
    return torch.where(value.isfinite(), rounded.view(torch.float64), value)


def activation(case: Case, inputs: Inputs) -> Tensor:
    """What the convolution reads, float64, every rounding of the prologue's form included."""
    x = inputs.x.double()
    if not case.prologue:
        return x
    if case.prologue == "packed":
        scale, shift = (v.to(case.dtype).double() for v in (inputs.in_scale, inputs.in_shift))
        return torch.relu(_rounded_once(x * scale + shift, case.dtype))
    wide = (x * inputs.in_scale.double() + inputs.in_shift.double()).float()  # a fused multiply-add of float32
    return torch.relu(wide.to(case.dtype).double())


def convolution(a: Tensor, weight: Tensor, stride: int) -> Tensor:
    z = F.conv2d(a.permute(0, 3, 1, 2), weight.double().permute(0, 3, 1, 2), padding=1, stride=stride)
    return z.permute(0, 2, 3, 1)


def expected(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The float64 output, and how far float32 arithmetic may be from it before the output is rounded."""
    a = activation(case, inputs)
    z = convolution(a, inputs.weight, case.stride)
    slack = 2.0**-22 * convolution(a.abs(), inputs.weight.abs(), case.stride)
    if case.epilogue == "stats":
        return z, slack
    scaled = z * inputs.scale.double()
    y = scaled + inputs.shift.double()
    slack = slack * inputs.scale.abs() + 2.0**-22 * (scaled.abs() + inputs.shift.abs())
    if case.residual:
        y, slack = y + inputs.residual.double(), slack + 2.0**-22 * inputs.residual.abs()
    return (y.relu() if case.relu else y), slack


def check_map(case: Case, y: Tensor, exact: Tensor, slack: Tensor) -> None:
    """y is `exact`, rounded to the output's dtype after an error of at most `slack`; NaN where it is NaN."""
    assert torch.equal(y.isnan(), exact.isnan()), "NaN in other places than in the reference"
    finite = exact.isfinite()
    assert torch.equal(y.double()[~finite & ~exact.isnan()], exact[~finite & ~exact.isnan()])
    half_ulp = 2.0 ** -(MANTISSA_BITS[case.dtype] + 1)
    error = (y.double() - exact).abs()[finite]
    bound = (half_ulp * (exact.abs() + slack) + slack + 2.0**-25)[finite]  # 2^-25: half of float16's smallest
    worst = (error / bound).max().item()
    assert worst <= 1, f"{(error > bound).sum()} of {error.numel()} elements off, the worst {worst:.3g} times the bound"


def check_partials(case: Case, y: Tensor, partials: Tensor) -> None:
    """The merged partials are count, mean and variance of y as rounded, to 1e-5."""
    pixels = y.double().flatten(0, 2)
    count, mean, m2 = partials.double().unbind(1)
    assert (count == count[:, :1]).all(), "the filters of a row count different numbers of pixels"
    assert count[:, 0].sum() == len(pixels), f"{count[:, 0].sum():.0f} pixels counted of {len(pixels)}"
    assert (partials[count[:, 0] == 0] == 0).all(), "an empty row holds something"
    merged = (count * mean).sum(0) / len(pixels)
    variance = (m2 + count * (mean - merged) ** 2).sum(0) / len(pixels)
    reference = pixels.var(0, unbiased=False)
    spread = reference.sqrt().clamp(min=1e-3)
    mean_error = ((merged - pixels.mean(0)).abs() / spread).max().item()
    variance_error = ((variance - reference).abs() / spread**2).max().item()
    assert mean_error < 1e-5, f"the mean is off by {mean_error:.2g} deviations"
    assert variance_error < 1e-5, f"the variance is off by a factor of 1 + {variance_error:.2g}"


def check(case: Case, library: Library | None = None) -> Outputs:
    """Runs a case and holds its outputs to float64."""
    inputs = make_inputs(case)
    outputs = run(case, inputs, library)
    check_map(case, outputs.y, *expected(case, inputs))
    if outputs.partials is not None:
        check_partials(case, outputs.y, outputs.partials)
    return outputs
