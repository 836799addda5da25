"""Cases for parity tests: curated lists of frozen dataclasses, one for each thing that can go wrong, no products."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fused_resnet.shapes import ConvShape

from .drawing import LAYOUTS, Draw, channels_last


@dataclasses.dataclass(frozen=True)
class ConvCase:
    """One call of `conv_scale_shift_act`.

    bn: "live" (statistics given), "folded" (scale and shift as they stand), "shift" (shift alone), or "none".
    residual: "none", "same", or "option_a" (channels and pixels of the block's input that `residual_stride` makes fit).
    vectors: the dtype of the per-channel vectors.
    """

    shape: ConvShape
    bn: str = "live"
    residual: str = "none"
    residual_channels: int = 0
    residual_stride: int = 1
    act: str = "relu"
    dtype: torch.dtype = torch.float32
    vectors: torch.dtype = torch.float32
    layout: str = "channels_last"
    residual_layout: str = "channels_last"
    outputs: tuple[str, ...] = ("y",)

    @property
    def id(self) -> str:
        parts = [self.shape.key(), f"bn_{self.bn}", self.act, str(self.dtype).removeprefix("torch."), self.layout]
        if self.residual != "none":
            parts.append(f"residual_{self.residual}_{self.residual_layout}")
        if self.residual == "option_a":
            parts.append(f"c{self.residual_channels}_s{self.residual_stride}")
        if self.vectors != torch.float32:
            parts.append(f"vectors_{str(self.vectors).removeprefix('torch.')}")
        return "-".join(parts)

    def __str__(self) -> str:
        return self.id

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        draw, s = Draw(self.id, self.dtype, device), self.shape
        fan_in = s.gemm_k
        arguments: dict[str, Any] = {
            "x": LAYOUTS[self.layout](draw.normal(s.n, s.c, s.h, s.w)),
            "weight": channels_last(draw.normal(s.k, s.c // s.groups, s.r, s.s) / fan_in**0.5),
            "stride": tuple(s.stride),
            "padding": tuple(s.padding),
            "dilation": tuple(s.dilation),
            "groups": s.groups,
            "act": self.act,
        }
        if self.bn in ("live", "folded"):
            arguments["bn_weight"] = draw.positive(s.k, dtype=self.vectors)
        if self.bn != "none":
            arguments["bn_bias"] = draw.normal(s.k, dtype=self.vectors)
        if self.bn == "live":
            arguments["running_mean"] = draw.normal(s.k, dtype=self.vectors)
            arguments["running_var"] = draw.positive(s.k, dtype=self.vectors)
            arguments["eps"] = 1e-5
        if self.residual != "none":
            arguments["residual"] = LAYOUTS[self.residual_layout](self._residual(draw))
            arguments["residual_stride"] = self.residual_stride
        return arguments

    def _residual(self, draw: Draw) -> Tensor:
        s = self.shape
        if self.residual == "same":
            return draw.normal(s.n, s.k, s.p, s.q)
        # the odd extent: the last subsampled pixel is the last pixel
        return draw.normal(
            s.n, self.residual_channels, (s.p - 1) * self.residual_stride + 1, (s.q - 1) * self.residual_stride + 1
        )


def _conv(n, c, h, w, k, kernel, stride=1, padding=0, dilation=1, groups=1, **rest) -> ConvCase:
    return ConvCase(ConvShape(n, c, h, w, k, kernel, kernel, stride, padding, dilation, groups), **rest)


def _rectangular(**rest) -> ConvCase:
    return ConvCase(ConvShape(2, 8, 12, 17, 16, 3, 5, (2, 1), (1, 2), (1, 2)), **rest)


CONV_CASES: tuple[ConvCase, ...] = (
    # the four convolutions of a residual block
    _conv(2, 64, 14, 14, 64, 3, padding=1),
    _conv(2, 64, 14, 14, 64, 3, padding=1, residual="same"),
    _conv(1, 32, 14, 14, 128, 1, residual="same"),
    _conv(2, 64, 14, 14, 128, 1, stride=2, act="identity"),
    _conv(2, 64, 14, 14, 128, 3, stride=2, padding=1),
    # what the epilogue may leave out
    _conv(2, 16, 9, 11, 24, 3, padding=1, bn="folded"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, bn="shift", residual="same"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, bn="none"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, bn="none", act="identity"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, act="identity", residual="same"),
    # filters that outweigh the output: another order of work may pay
    _conv(1, 256, 3, 3, 256, 3, padding=1, residual="same"),
    _conv(1, 512, 1, 1, 128, 1),
    # odd sizes, channels that are no multiple of 8, one pixel
    _conv(3, 3, 13, 7, 5, 3, padding=1),
    _conv(2, 13, 15, 9, 17, 1, residual="same"),
    _conv(1, 1, 1, 1, 1, 1),
    _conv(1, 7, 5, 3, 9, 3, stride=2, padding=1, residual="same"),
    _conv(1, 3, 33, 29, 16, 7, stride=2, padding=3),
    _rectangular(residual="same"),
    # dilation, groups, depthwise
    _conv(2, 32, 14, 14, 32, 3, padding=2, dilation=2, residual="same"),
    _conv(2, 32, 14, 14, 64, 3, padding=1, groups=8, residual="same"),
    _conv(2, 32, 13, 14, 64, 3, stride=2, padding=1, groups=32),
    _conv(2, 24, 10, 10, 24, 3, padding=1, groups=24),
    # option A
    _conv(2, 16, 8, 8, 16, 3, padding=1, residual="option_a", residual_channels=8, residual_stride=2),
    _conv(2, 16, 7, 9, 32, 3, padding=1, residual="option_a", residual_channels=13, residual_stride=1),
    _conv(2, 16, 7, 9, 16, 3, padding=1, residual="option_a", residual_channels=16, residual_stride=2),
    # layouts
    _conv(2, 16, 9, 11, 24, 3, padding=1, layout="nchw", residual="same", residual_layout="nchw"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, layout="nchw", residual="same", residual_layout="channels_last"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, layout="channels_last", residual="same", residual_layout="nchw"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, layout="misaligned", residual="same", residual_layout="misaligned"),
    _conv(2, 16, 9, 11, 24, 1, layout="misaligned_channels_last", residual="same", residual_layout="misaligned"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, layout="sliced", residual="same", residual_layout="sliced"),
    _conv(3, 16, 9, 11, 24, 3, padding=1, layout="expanded", residual="same", residual_layout="expanded"),
    _conv(2, 16, 9, 11, 24, 3, padding=1, layout="transposed", residual="same", residual_layout="transposed"),
    _conv(1, 8, 1, 6, 8, 1, layout="nchw", residual="same", residual_layout="channels_last"),
    # vectors in another dtype than float32
    _conv(2, 16, 9, 11, 24, 3, padding=1, vectors=torch.float64),
    _conv(2, 16, 9, 11, 24, 3, padding=1, vectors=torch.bfloat16, bn="folded"),
)


def with_dtype(cases: tuple[ConvCase, ...], dtype: torch.dtype, vectors: torch.dtype | None = None) -> list[ConvCase]:
    """The same cases in another dtype, with per-channel vectors of `vectors` where that is given."""
    return [dataclasses.replace(case, dtype=dtype, vectors=vectors or case.vectors) for case in cases]


@dataclasses.dataclass(frozen=True)
class StemCase:
    """One call of `conv_bn_relu_maxpool`, ResNet's 7 x 7 stride 2 and 3 x 3 stride 2 pooling unless told otherwise."""

    op = "conv_bn_relu_maxpool"
    n: int
    h: int
    w: int
    k: int = 64
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    outputs: tuple[str, ...] = ("y",)

    @property
    def id(self) -> str:
        return f"stem_n{self.n}_h{self.h}_w{self.w}_k{self.k}-{str(self.dtype).removeprefix('torch.')}-{self.layout}"

    def __str__(self) -> str:
        return self.id

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        draw = Draw(self.id, self.dtype, device)
        return {
            "x": LAYOUTS[self.layout](draw.normal(self.n, 3, self.h, self.w)),
            "weight": draw.normal(self.k, 3, 7, 7) / 147**0.5,
            "bn_weight": draw.positive(self.k, dtype=torch.float32),
            "bn_bias": draw.normal(self.k, dtype=torch.float32),
            "running_mean": draw.normal(self.k, dtype=torch.float32),
            "running_var": draw.positive(self.k, dtype=torch.float32),
            "eps": 1e-5,
            "stride": (2, 2),
            "padding": (3, 3),
        }


STEM_CASES: tuple[StemCase, ...] = (
    StemCase(2, 32, 32),
    StemCase(2, 32, 32, layout="channels_last"),
    StemCase(1, 33, 47, k=20),
    StemCase(3, 17, 9, layout="misaligned"),
    StemCase(2, 30, 31, layout="sliced"),
    StemCase(2, 1, 1, k=8),
)


@dataclasses.dataclass(frozen=True)
class PoolCase:
    """One call of `global_avg_pool`."""

    n: int
    c: int
    h: int
    w: int
    dtype: torch.dtype = torch.float32
    layout: str = "channels_last"
    outputs: tuple[str, ...] = ("y",)

    @property
    def id(self) -> str:
        size = f"pool_n{self.n}_c{self.c}_h{self.h}_w{self.w}"
        return f"{size}-{str(self.dtype).removeprefix('torch.')}-{self.layout}"

    def __str__(self) -> str:
        return self.id

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        return {"x": LAYOUTS[self.layout](Draw(self.id, self.dtype, device).normal(self.n, self.c, self.h, self.w))}


POOL_CASES: tuple[PoolCase, ...] = (
    PoolCase(2, 64, 7, 7),
    PoolCase(2, 64, 7, 7, layout="nchw"),
    PoolCase(1, 13, 5, 3, layout="misaligned"),
    PoolCase(3, 24, 8, 6, layout="sliced"),
    PoolCase(2, 17, 1, 1),
    PoolCase(2, 8, 4, 9, layout="expanded"),
    PoolCase(2, 16, 4, 4, layout="transposed"),
)


@dataclasses.dataclass(frozen=True)
class OptionACase:
    """One call of `option_a_shortcut`."""

    n: int
    c: int
    h: int
    w: int
    out_channels: int
    stride: int
    dtype: torch.dtype = torch.float32
    layout: str = "channels_last"
    outputs: tuple[str, ...] = ("y",)

    @property
    def id(self) -> str:
        size = f"option_a_n{self.n}_c{self.c}_h{self.h}_w{self.w}_k{self.out_channels}_s{self.stride}"
        return f"{size}-{str(self.dtype).removeprefix('torch.')}-{self.layout}"

    def __str__(self) -> str:
        return self.id

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        x = LAYOUTS[self.layout](Draw(self.id, self.dtype, device).normal(self.n, self.c, self.h, self.w))
        return {"x": x, "out_channels": self.out_channels, "stride": self.stride}


OPTION_A_CASES: tuple[OptionACase, ...] = (
    OptionACase(2, 16, 8, 8, 32, 2),
    OptionACase(2, 16, 7, 9, 32, 2, layout="nchw"),
    OptionACase(2, 16, 8, 8, 16, 1),
    OptionACase(1, 5, 7, 4, 12, 3, layout="misaligned"),
    OptionACase(2, 8, 5, 5, 11, 1, layout="sliced"),
    OptionACase(2, 8, 5, 6, 16, 2, layout="expanded"),
)
