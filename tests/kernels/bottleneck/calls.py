"""Calls of the emulated bottleneck_inference, and what float64 says of them: for its tests and its mutations."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from tests.support.emulated import Library

ELEMENT_TYPES = {torch.bfloat16: 0, torch.float16: 1}
UNIT_ROUNDOFF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
ACCUMULATED = 4e-6  # absolute error of float32 sums of a few hundred products of order 1 at most
SENTINEL = 7.0  # stands around the output
GUARD = 512  # elements of it on either side


@dataclass(frozen=True)
class Case:
    """A bottleneck; `blocks` is the number of multiprocessors, `seed` the schedule.  Without `c_in`: identity."""

    n: int
    h: int
    w: int
    c: int
    c_in: int | None = None
    stride: int = 1
    dtype: torch.dtype = torch.bfloat16
    blocks: int = 2
    seed: int = 1
    workers: int = 1
    weights_ready: bool = False

    def __str__(self) -> str:
        shortcut = "identity" if self.c_in is None else f"from{self.c_in}"
        return f"{self.n}x{self.h}x{self.w}x{self.c}-{shortcut}-s{self.stride}-{str(self.dtype)[6:]}-seed{self.seed}"

    @property
    def channels_in(self) -> int:
        return 4 * self.c if self.c_in is None else self.c_in

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        return self.n, -(-self.h // self.stride), -(-self.w // self.stride), 4 * self.c

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.n, self.h, self.w, self.channels_in, self.c, self.stride


@dataclass
class Inputs:
    """In the launcher's order: x (n, h, w, c_in); weights (filters, [3, 3,] channels); vectors float32."""

    x: Tensor
    weight1: Tensor
    scale1: Tensor
    shift1: Tensor
    weight2: Tensor
    scale2: Tensor
    shift2: Tensor
    weight3: Tensor
    scale3: Tensor
    shift3: Tensor
    downsample: Tensor | None
    downsample_scale: Tensor | None
    downsample_shift: Tensor | None

    @property
    def all(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.c * 1009 + case.channels_in)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def weight(*size: int) -> Tensor:
        return (normal(*size) / torch.Size(size[1:]).numel() ** 0.5).to(case.dtype)

    def norm(filters: int) -> tuple[Tensor, Tensor]:
        return 1 + 0.3 * normal(filters), 0.5 + 0.5 * normal(filters)

    c, c_in, projects = case.c, case.channels_in, case.c_in is not None
    return Inputs(
        normal(case.n, case.h, case.w, c_in).to(case.dtype),
        weight(c, c_in), *norm(c), weight(c, 3, 3, c), *norm(c), weight(4 * c, c), *norm(4 * c),
        weight(4 * c, c_in) if projects else None, *(norm(4 * c) if projects else (None, None)),
    )  # fmt: skip


def _conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """In float64, of tensors as NHWC as the kernel's."""
    weight = weight.double().reshape(len(weight), -1, 1, weight.shape[-1]) if weight.dim() == 2 else weight.double()
    z = conv2d(x.double().permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), None, stride, weight.shape[1] // 2)
    return z.permute(0, 2, 3, 1)


def _rounded(y: Tensor, slack: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`y` rounded to `dtype`, and how far from that the rounding of something within `slack` of `y` may be."""
    low, middle, high = ((y + sign * slack).to(dtype).double() for sign in (-1, 0, 1))
    return middle, torch.maximum(high - middle, middle - low)


def expected(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """y in float64, of y1 and y2 as rounded, and the error that it may have before its own rounding.

    That error comes of float32's sums, and of y1 and y2 being rounded from such: what lies next to the middle between
    two numbers of the type may go to either, which is followed here through what is computed of it.
    """
    i, dtype = inputs, case.dtype
    y1 = torch.relu(_conv(i.x, i.weight1) * i.scale1.double() + i.shift1.double())
    y1, slack = _rounded(y1, torch.full_like(y1, ACCUMULATED), dtype)
    y2 = torch.relu(_conv(y1, i.weight2, case.stride) * i.scale2.double() + i.shift2.double())
    slack = _conv(slack, i.weight2.abs(), case.stride) * i.scale2.abs().double() + ACCUMULATED
    y2, slack = _rounded(y2, slack, dtype)
    y = _conv(y2, i.weight3) * i.scale3.double() + i.shift3.double()
    slack = _conv(slack, i.weight3.abs()) * i.scale3.abs().double() + ACCUMULATED
    if i.downsample is None:
        y = y + i.x.double()
    else:
        x = i.x[:, :: case.stride, :: case.stride]
        y = y + _conv(x, i.downsample) * i.downsample_scale.double() + i.downsample_shift.double()
    return torch.relu(y), slack


def assert_rounded(y: Tensor, exact: Tensor, slack: Tensor) -> None:
    """`y` is `exact` rounded to its dtype, NaN and infinities in their places, but for `slack`."""
    assert torch.equal(y.isnan(), exact.isnan()), "NaN is not where it belongs"
    special = ~exact.isfinite()
    assert torch.equal(y.double()[special].nan_to_num(), exact[special].nan_to_num())
    error = (y.double() - exact).abs()[~special]
    allowed = (exact.abs() * UNIT_ROUNDOFF[y.dtype] + slack)[~special]
    assert (error <= allowed).all(), f"{(error > allowed).sum()} of {error.numel()} are off, by up to {error.max()}"


def run(library: Library, case: Case, inputs: Inputs) -> Tensor:
    """y, written amid a guard that is found intact."""
    count = torch.Size(case.output_size).numel()
    buffer = torch.full((count + 2 * GUARD,), SENTINEL, dtype=case.dtype)
    y = buffer[GUARD : GUARD + count].fill_(torch.nan).view(case.output_size)
    library.bottleneck_inference(*inputs.all, y, ELEMENT_TYPES[case.dtype], *case.sizes,
        case.weights_ready, case.blocks, case.seed, case.workers,
    )  # fmt: skip
    assert (buffer[:GUARD] == SENTINEL).all() and (buffer[-GUARD:] == SENTINEL).all(), "written outside of the output"
    return y


def check(library: Library, case: Case) -> None:
    inputs = draw(case)
    assert_rounded(run(library, case, inputs), *expected(case, inputs))


def moved_bytes(library: Library) -> tuple[int, int]:
    """Bytes of x that the last run took out of global memory, and of y that it wrote."""
    return library.loaded_bytes(), library.stored_bytes()
