"""Calls of the emulated conv3x3_halo_dgrad, and what they should give."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tests.kernels.conv3x3.forward_calls import ELEMENT_TYPES, check_map
from tests.support import emulated
from tests.support.emulated import Library


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; h and w are those of dx, maps are NHWC.

    `below`: "mask" with sums, "sums" alone, "block" with sums, a skip and below_out, "masked block" with skip_out too,
    "skip", "masked skip", "out", or "".
    """

    channels: int
    stride: int
    n: int
    h: int
    w: int
    dtype: torch.dtype = torch.bfloat16
    batch: bool = True  # the batch's statistics: with z, b and c
    below: str = "mask"
    blocks: int = 2
    seed: int = 0
    filters: int = 0  # 0: as many as channels

    def __str__(self) -> str:
        channels = f"{self.channels}to{self.filters}ch" if self.filters else f"{self.channels}ch"
        words = [channels, f"stride{self.stride}", f"{self.n}x{self.h}x{self.w}"]
        words += [str(self.dtype).removeprefix("torch."), "batch" if self.batch else "constant"]
        words += [self.below.replace(" ", "-") or "bare"]
        return "-".join([*words, f"blocks{self.blocks}", f"seed{self.seed}"])

    @property
    def k(self) -> int:
        return self.filters or self.channels

    @property
    def has_sums(self) -> bool:
        return self.below in ("mask", "sums", "block", "masked block")

    @property
    def has_below_out(self) -> bool:
        return self.below.endswith(("block", "out"))

    @property
    def has_skip(self) -> bool:
        return self.below.endswith(("block", "skip"))

    @property
    def has_skip_out(self) -> bool:
        return self.below.startswith("masked")

    @property
    def size(self) -> tuple[int, int, int, int]:
        return self.n, self.h, self.w, self.channels

    @property
    def skip_size(self) -> tuple[int, int, int, int]:
        return self.gradient_size[:3] + (self.channels,)

    @property
    def gradient_size(self) -> tuple[int, int, int, int]:
        p, q = ((extent - 1) // self.stride + 1 for extent in (self.h, self.w))
        return self.n, p, q, self.k


@dataclasses.dataclass
class Inputs:
    g: Tensor
    z: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    weight: Tensor  # (K, C, 3, 3)
    below_z: Tensor
    below_scale: Tensor
    below_shift: Tensor
    below_mean: Tensor
    below_out: Tensor
    skip: Tensor
    skip_out: Tensor


def make_inputs(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.h * 100 + case.w)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    c, k = case.channels, case.k
    return Inputs(
        random(*case.gradient_size).to(case.dtype),
        (random(*case.gradient_size) + 0.5).to(case.dtype),
        1 + 0.3 * random(k),
        0.3 * random(k),
        0.5 + 0.3 * random(k),  # far from zero: padding must not become it
        (random(k, c, 3, 3) * (2 / (9 * k)) ** 0.5).to(case.dtype),
        random(*case.size).to(case.dtype),
        1 + 0.3 * random(c),
        0.3 * random(c),
        0.3 * random(c),
        random(*case.size).relu().to(case.dtype),
        random(*case.skip_size).to(case.dtype),
        random(*case.skip_size).relu().to(case.dtype),
    )


def turned_around(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) as the kernel wants it: (C, 3, 3, K), rows and columns the other way round."""
    return weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()


@dataclasses.dataclass
class Outputs:
    dx: Tensor
    partials: Tensor | None


def run(case: Case, inputs: Inputs, library: Library | None = None, partial_rows: int | None = None) -> Outputs:
    """Runs the kernel; a row of partials that it must not touch follows those that it may."""
    library = library or emulated.library("kernels/conv3x3/dgrad/host.cpp")
    rows = partial_rows or case.blocks + 1
    dx = torch.full((case.n + 1, *case.size[1:]), torch.nan, dtype=case.dtype)  # one image that must stay
    partials = torch.full((rows + 1, 2, case.channels), torch.nan) if case.has_sums else None
    norm = (inputs.z, inputs.a, inputs.b, inputs.c) if case.batch else (None, inputs.a, None, None)
    mask = (inputs.below_scale, inputs.below_shift) if case.below == "mask" else (None, None)
    below_z, below_mean = (inputs.below_z, inputs.below_mean) if case.has_sums else (None, None)
    block = (
        inputs.below_out if case.has_below_out else None,
        inputs.skip if case.has_skip else None,
        inputs.skip_out if case.has_skip_out else None,
    )
    pointers = (inputs.g, *norm, turned_around(inputs.weight), below_z, *mask, below_mean, *block, dx, partials)
    sizes = (ELEMENT_TYPES[case.dtype], *case.size, case.k, case.stride)
    library.conv3x3_halo_dgrad(*pointers, rows, *sizes, case.blocks, case.seed, 1)
    assert dx[case.n].isnan().all(), "stored behind dx"
    if partials is not None:
        assert partials[rows].isnan().all(), "stored behind the partials"
        partials = partials[:rows]
    return Outputs(dx[: case.n], partials)


def loaded_bytes() -> int:
    """Bytes of g and z that the last run's TMA loads took out of global memory."""
    return emulated.library("kernels/conv3x3/dgrad/host.cpp").loaded_bytes()


def bn_backward(case: Case, inputs: Inputs) -> Tensor:
    """dz, rounded, float64."""
    dz = inputs.g.double() * inputs.a.double()
    if case.batch:
        # Each fused multiply-add rounds once, to float32: float64 between them is exact enough not to be seen.
        dz = dz + (inputs.z.double() * inputs.b.double() + inputs.c.double()).float().double()
    return dz.float().to(case.dtype).double()


def transposed(case: Case, dz: Tensor, weight: Tensor) -> Tensor:
    size = (case.n, case.channels, case.h, case.w)
    dx = torch.nn.grad.conv2d_input(size, weight.double(), dz.permute(0, 3, 1, 2), case.stride, 1)
    return dx.permute(0, 2, 3, 1)


def expected(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The float64 gradient, and how far float32 arithmetic may be from it before it is rounded."""
    dz = bn_backward(case, inputs)
    dx = transposed(case, dz, inputs.weight)
    slack = 2.0**-22 * transposed(case, dz.abs(), inputs.weight.abs())
    if case.has_skip:
        skip = inputs.skip.double()
        if case.has_skip_out:
            skip = torch.where(inputs.skip_out <= 0, 0, skip)
        every = slice(None), slice(None, None, case.stride), slice(None, None, case.stride)
        dx, slack = dx.clone(), slack.clone()
        dx[every] += skip
        slack[every] += 2.0**-22 * skip.abs()
    if case.has_below_out:
        dx = torch.where(inputs.below_out <= 0, 0, dx)
    if case.below == "mask":
        wide = inputs.below_z.double() * inputs.below_scale.double() + inputs.below_shift.double()
        dx = torch.where(wide.float() <= 0, 0, dx)  # one fused multiply-add
    return dx, slack


def check_partials(case: Case, inputs: Inputs, outputs: Outputs) -> None:
    """The sums of what was stored, to float32's accuracy."""
    dx = outputs.dx.double().flatten(0, 2)
    centered = inputs.below_z.double().flatten(0, 2) - inputs.below_mean.double()
    total = outputs.partials.double().sum(0)
    for name, got, terms in (("sum_g", total[0], dx), ("sum_gz", total[1], dx * centered)):
        error = ((got - terms.sum(0)).abs() / terms.abs().sum(0).clamp(min=1e-3)).max().item()
        assert error < 2e-6, f"{name} is off by {error:.2g} of the sum of its terms' sizes"
    assert (outputs.partials[case.blocks :] == 0).all(), "a row that no block needed holds something"


def check(case: Case, library: Library | None = None) -> Outputs:
    """Runs a case and holds its outputs to float64."""
    inputs = make_inputs(case)
    outputs = run(case, inputs, library)
    check_map(case, outputs.dx, *expected(case, inputs))
    if outputs.partials is not None:
        check_partials(case, inputs, outputs)
    return outputs
