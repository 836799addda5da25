"""The geometry of one 2-D convolution, and what it costs.

Names follow cuDNN and CUTLASS: an N x C x H x W input, K filters of R x S, an N x K x P x Q output.  As an implicit
GEMM, `gemm_m` counts output pixels, `gemm_n` filters and `gemm_k` the products summed into one output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Pair(NamedTuple):
    """A (height, width) pair of a convolution's parameter."""

    h: int
    w: int


def pair(value: int | tuple[int, int] | list[int]) -> Pair:
    """`value` as (height, width); one int stands for both."""
    return Pair(value, value) if isinstance(value, int) else Pair(*value)


def output_extent(extent: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Pixels along one axis after a convolution or pooling window; not positive when the window does not fit."""
    return (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class ConvShape:
    """One 2-D convolution: `n` x `c` x `h` x `w` input, `k` filters of `r` x `s` over `c // groups` channels."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: Pair = Pair(1, 1)
    padding: Pair = Pair(0, 0)
    dilation: Pair = Pair(1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("stride", "padding", "dilation"):
            object.__setattr__(self, name, pair(getattr(self, name)))

    @classmethod
    def of(cls, x, weight, stride=1, padding=0, dilation=1, groups: int = 1) -> ConvShape:
        """The shape of convolving `x` (N, C, H, W) with `weight` (K, C / groups, R, S): anything with a `.shape`."""
        n, c, h, w = x.shape
        k, _, r, s = weight.shape
        return cls(n, c, h, w, k, r, s, stride, padding, dilation, groups)

    @property
    def p(self) -> int:
        """Output height."""
        return output_extent(self.h, self.r, self.stride.h, self.padding.h, self.dilation.h)

    @property
    def q(self) -> int:
        """Output width."""
        return output_extent(self.w, self.s, self.stride.w, self.padding.w, self.dilation.w)

    @property
    def gemm_m(self) -> int:
        return self.n * self.p * self.q

    @property
    def gemm_n(self) -> int:
        return self.k

    @property
    def gemm_k(self) -> int:
        return self.r * self.s * self.c // self.groups

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.gemm_m * self.gemm_n * self.gemm_k

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add counted as two."""
        return 2 * self.macs

    @property
    def input_elements(self) -> int:
        return self.n * self.c * self.h * self.w

    @property
    def output_elements(self) -> int:
        return self.gemm_m * self.k

    @property
    def weight_elements(self) -> int:
        return self.k * self.gemm_k

    def bytes(self, itemsize: int, residual: bool = False) -> int:
        """The fewest bytes to move: input, filters and output once each, and the residual once if there is one.

        A strided 1x1 convolution reads only the pixels that it samples.
        """
        read = self.input_elements
        if self.r == self.s == 1:
            read = self.n * self.c * self.p * self.q
        return itemsize * (read + self.weight_elements + self.output_elements * (2 if residual else 1))

    def key(self) -> str:
        """A readable, unique id such as `n256_c64_h56_w56_k64_r3x3_s1x1_p1x1_d1x1_g1`."""
        return (
            f"n{self.n}_c{self.c}_h{self.h}_w{self.w}_k{self.k}_r{self.r}x{self.s}"
            f"_s{self.stride.h}x{self.stride.w}_p{self.padding.h}x{self.padding.w}"
            f"_d{self.dilation.h}x{self.dilation.w}_g{self.groups}"
        )

    def __str__(self) -> str:
        return self.key()
