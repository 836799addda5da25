"""Calls of the emulated conv1x1_dgrad and conv1x1_wgrad, and what float64 says of them: for their tests and faults."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tests.kernels.conv1x1.forward_calls import ELEMENT_TYPES, UNIT_ROUNDOFF, assert_guard_intact, guarded
from tests.kernels.conv3x3.wgrad_calls import assert_products
from tests.support.emulated import Library


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution's backward; h and w are those of its input, maps are NHWC.

    `with_`: of dgrad "skip", "skip_out" (with a skip), "skip_2" (its stride), "out" (a block below), "mask" (a norm and
    its ReLU below, with sums), "sums" (a norm below without its ReLU); of wgrad "prologue"; of both "constant"
    statistics. `blocks` is the number of multiprocessors, for wgrad that of splits; `seed` is the schedule.
    """

    n: int
    h: int
    w: int
    c: int
    k: int
    with_: tuple[str, ...] = ()
    stride: int = 1
    dtype: torch.dtype = torch.bfloat16
    blocks: int = 2
    seed: int = 1
    workers: int = 1

    def __str__(self) -> str:
        size = f"{self.n}x{self.h}x{self.w}x{self.c}-{self.k}-s{self.stride}"
        words = [size, str(self.dtype)[6:], *self.with_, f"blocks{self.blocks}", f"seed{self.seed}"]
        return "-".join(words)

    def has(self, *words: str) -> bool:
        return not set(words).isdisjoint(self.with_)

    @property
    def size(self) -> tuple[int, int, int, int]:
        return self.n, self.h, self.w, self.c

    @property
    def skip_stride(self) -> int:
        return 2 if self.has("skip_2") else 1

    def strided(self, stride: int, channels: int) -> tuple[int, int, int, int]:
        return self.n, -(-self.h // stride), -(-self.w // stride), channels


@dataclasses.dataclass
class Inputs:
    """None where the case has none; vectors are float32."""

    g: Tensor
    z: Tensor | None
    a: Tensor
    b: Tensor | None
    c: Tensor | None
    weight: Tensor  # (K, C)
    below_z: Tensor | None
    below_scale: Tensor | None
    below_shift: Tensor | None
    below_mean: Tensor | None
    below_out: Tensor | None
    skip: Tensor | None
    skip_out: Tensor | None
    x: Tensor
    in_scale: Tensor | None
    in_shift: Tensor | None


def draw(case: Case) -> Inputs:
    generator = torch.Generator().manual_seed(case.c * 1009 + case.k)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def vector(center: float, size: int) -> Tensor:
        """Behind it NaN, which nothing may read."""
        return torch.cat((center + 0.3 * normal(size), torch.full((64,), torch.nan)))[:size]

    def given(word: bool, made: Tensor) -> Tensor | None:
        return made if word else None

    gradient, skip = case.strided(case.stride, case.k), case.strided(case.skip_stride, case.c)
    batch, mask, prologue = not case.has("constant"), case.has("mask"), case.has("prologue")
    sums = case.has("mask", "sums")
    return Inputs(
        normal(*gradient).to(case.dtype),
        given(batch, (normal(*gradient) + 0.5).to(case.dtype)),
        vector(1, case.k),
        given(batch, vector(0, case.k)),
        given(batch, vector(0.5, case.k)),  # far from zero: pixels that do not exist must not become it
        (normal(case.k, case.c) / case.k**0.5).to(case.dtype),
        given(sums, normal(*case.size).to(case.dtype)),
        given(mask, vector(1, case.c)),
        given(mask, vector(0, case.c)),
        given(sums, vector(0, case.c)),
        given(case.has("out"), normal(*case.size).relu().to(case.dtype)),
        given(case.has("skip", "skip_out"), normal(*skip).to(case.dtype)),
        given(case.has("skip_out"), normal(*skip).relu().to(case.dtype)),
        normal(*case.size).to(case.dtype),
        given(prologue, vector(1, case.c)),
        given(prologue, vector(0.5, case.c)),
    )


def bn_backward(case: Case, inputs: Inputs) -> Tensor:
    """dz, rounded, float64."""
    dz = inputs.g.double() * inputs.a.double()
    if inputs.b is not None:
        # Each fused multiply-add rounds once, to float32: float64 between them is exact enough not to be seen.
        dz = dz + (inputs.z.double() * inputs.b.double() + inputs.c.double()).float().double()
    return dz.float().to(case.dtype).double()


# ---- dgrad ----


def run_dgrad(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """dx, and the partials where there is a norm below."""
    dx, buffer = guarded(case.size, case.dtype)
    partials = partials_buffer = None
    if inputs.below_z is not None:
        count = library.conv1x1_dgrad_partial_rows(case.n, case.h, case.w, case.stride, case.skip_stride)
        partials, partials_buffer = guarded((count, 2, case.c), torch.float32)
    library.conv1x1_dgrad(inputs.g, inputs.z, inputs.a, inputs.b, inputs.c, inputs.weight, inputs.below_z,
        inputs.below_scale, inputs.below_shift, inputs.below_mean, inputs.below_out, inputs.skip, inputs.skip_out,
        case.skip_stride, dx, partials, ELEMENT_TYPES[case.dtype], *case.size, case.k, case.stride, case.blocks,
        case.seed, case.workers,
    )  # fmt: skip
    assert_guard_intact(buffer)
    if partials is not None:
        assert_guard_intact(partials_buffer)
    return dx, partials


def dgrad(case: Case, inputs: Inputs) -> Tensor:
    """dx in float64."""
    dx = torch.zeros(case.size, dtype=torch.float64)
    dx[:, :: case.stride, :: case.stride] = bn_backward(case, inputs) @ inputs.weight.double()
    if inputs.skip is not None:
        skip = inputs.skip.double()
        if inputs.skip_out is not None:
            skip = torch.where(inputs.skip_out <= 0, 0, skip)
        dx[:, :: case.skip_stride, :: case.skip_stride] += skip
    if inputs.below_out is not None:
        dx = torch.where(inputs.below_out <= 0, 0, dx)
    if inputs.below_scale is not None:
        wide = inputs.below_z.double() * inputs.below_scale.double() + inputs.below_shift.double()
        dx = torch.where(wide.float() <= 0, 0, dx)  # one fused multiply-add
    return dx


def check_sums(inputs: Inputs, dx: Tensor, partials: Tensor) -> None:
    """The sums of what was stored, to float32's accuracy."""
    dx = dx.double().flatten(0, 2)
    centered = inputs.below_z.double().flatten(0, 2) - inputs.below_mean.double()
    total = partials.double().sum(0)
    for name, got, terms in (("sum_g", total[0], dx), ("sum_gz", total[1], dx * centered)):
        error = ((got - terms.sum(0)).abs() / terms.abs().sum(0).clamp(min=1e-3)).max().item()
        assert error < 2e-6, f"{name} is off by {error:.2g} of the sum of its terms' sizes"


def check_dgrad(library: Library, case: Case) -> None:
    inputs = draw(case)
    dx, partials = run_dgrad(library, case, inputs)
    torch.testing.assert_close(dx.double(), dgrad(case, inputs), rtol=UNIT_ROUNDOFF[case.dtype], atol=2e-5)
    if partials is not None:
        check_sums(inputs, dx, partials)


# ---- wgrad ----


def run_wgrad(library: Library, case: Case, inputs: Inputs) -> Tensor:
    """The partials (splits, K, C)."""
    partials, buffer = guarded((case.blocks, case.k, case.c), torch.float32)
    library.conv1x1_wgrad(inputs.g, inputs.z, inputs.a, inputs.b, inputs.c, inputs.x, inputs.in_scale,
        inputs.in_shift, partials, case.blocks, ELEMENT_TYPES[case.dtype], *case.size, case.k, case.stride, case.seed,
        case.workers,
    )  # fmt: skip
    assert_guard_intact(buffer)
    return partials


def wgrad(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """dW (K, C) in float64, and the same of absolute values."""
    dz = bn_backward(case, inputs).reshape(-1, case.k)
    x = inputs.x[:, :: case.stride, :: case.stride].double()
    if inputs.in_scale is not None:
        x = torch.relu(x * inputs.in_scale.double() + inputs.in_shift.double()).to(case.dtype).double()
    x = x.reshape(-1, case.c)
    return dz.T @ x, dz.abs().T @ x.abs()


def check_products(case: Case, inputs: Inputs, partials: Tensor) -> None:
    """The sum of the partials, to float32's accuracy."""
    assert_products(partials, *wgrad(case, inputs), inputs.g)


def check_wgrad(library: Library, case: Case) -> None:
    inputs = draw(case)
    check_products(case, inputs, run_wgrad(library, case, inputs))
