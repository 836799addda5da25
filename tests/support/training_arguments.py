"""What the training ops of `training_cases` are called with, and their outputs in a form that backends compare by.

A backend is free in how it groups pixels into partials and which centre it takes, so `comparable` turns partials into
mean and variance, and sums about its centre into mean and second moment about another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_resnet.backends.reference.parts import merge

from .drawing import LAYOUTS, Draw

OUTPUTS = {
    "conv_stats": ("z", "mean", "var"),
    "channel_stats": ("mean", "var"),
    "bn_finalize": ("mean", "var", "invstd", "scale", "shift"),
    "gram": ("mean", "second_moment"),
    "gram_finalize": ("mean", "var", "invstd", "scale", "shift"),
    "conv1x1_bn_add_act": ("y",),
    "bn_add_act": ("y",),
    "conv_dgrad": ("dx", "sum_g", "sum_gz"),
    "conv_wgrad": ("dW",),
    "conv1x1_backward": ("dx", "dW"),
    "gram_products": ("products", "sum_g", "t"),
    "gram_backward_finish": ("g", "sum_g", "sum_gz"),
    "bn_relu_maxpool": ("y",),
    "bn_relu_maxpool_backward": ("g", "sum_g", "sum_gz"),
    "bn_act_backward": ("g", "sum_g", "sum_gz"),
    "bn_backward_apply": ("dz",),
}


class Drawing(Draw):
    """Random maps and vectors of the case's shape."""

    def __init__(self, case, device: torch.device | str) -> None:
        super().__init__(case.id, case.dtype, device)
        self.case, self.s = case, case.shape
        self.input_size = (self.s.n, self.s.c, self.s.h, self.s.w)
        self.output_size = (self.s.n, self.s.k, self.s.p, self.s.q)

    def map(self, *size: int) -> Tensor:
        return LAYOUTS[self.case.layout](self.normal(*size))

    def activated(self, *size: int) -> Tensor:
        """The output of a ReLU: exact zeros among it."""
        return LAYOUTS[self.case.layout](self.normal(*size).relu())

    def vector(self, channels: int) -> Tensor:
        return self.normal(channels, dtype=torch.float32)

    def scale(self, channels: int) -> Tensor:
        return self.positive(channels, dtype=torch.float32)

    def filters(self, *size: int) -> Tensor:
        fan_in = size[1] * (size[2] * size[3] if len(size) == 4 else 1)
        weight = self.normal(*size) / fan_in**0.5
        return weight.contiguous(memory_format=torch.channels_last) if len(size) == 4 else weight

    def prologue(self) -> dict[str, Tensor | None]:
        """With "prologue": a norm of the input."""
        if "prologue" not in self.case.with_:
            return {"in_scale": None, "in_shift": None}
        return {"in_scale": self.scale(self.s.c), "in_shift": self.vector(self.s.c) + self.case.offset}

    def residual(self) -> dict[str, Any]:
        """With "residual": of the output's shape; "option_a": half of the channels, every second pixel."""
        n, k, p, q = self.output_size
        if "option_a" in self.case.with_:
            return {"residual": self.map(n, k // 2, 2 * p - 1, 2 * q - 1), "residual_stride": 2}
        return {"residual": self.map(n, k, p, q) if "residual" in self.case.with_ else None, "residual_stride": 1}

    def bn_backward(self) -> dict[str, Tensor | None]:
        """With "constant": statistics that are constants, `dz = a * g`."""
        k, constant = self.s.k, "constant" in self.case.with_
        a, b, c = self.vector(k), None, None
        if not constant:
            b, c = self.vector(k) / 4, self.vector(k) / 4
        return {"g": self.map(*self.output_size), "z": self.map(*self.output_size), "a": a, "b": b, "c": c}

    def act(self) -> str:
        """With "identity": no ReLU."""
        return "identity" if "identity" in self.case.with_ else "relu"


def _conv_stats(case, draw):
    s = case.shape
    geometry = {"stride": tuple(s.stride), "padding": tuple(s.padding), "dilation": tuple(s.dilation)}
    weight = draw.filters(s.k, s.c // s.groups, s.r, s.s)
    return {"x": draw.map(*draw.input_size), "weight": weight, **draw.prologue(), **geometry, "groups": s.groups}


def _channel_stats(case, draw):
    return {"z": draw.map(*draw.output_size) + case.offset}


def _affine(case, draw) -> dict[str, Any]:
    """With "bare": a norm without weight and bias."""
    vectors = (None, None) if "bare" in case.with_ else (draw.scale(case.shape.k), draw.vector(case.shape.k))
    return {"bn_weight": vectors[0], "bn_bias": vectors[1], "eps": 1e-5}


def _bn_finalize(case, draw):
    """With "empty": rows of count 0 in between."""
    rows, k = (case.shape.gemm_m + 127) // 128, case.shape.k
    count = torch.full((rows, k), 128.0)
    count[-1] = case.shape.gemm_m - 128 * (rows - 1)
    mean = draw.normal(rows, k, dtype=torch.float32) + case.offset
    partials = torch.stack((count, mean, count * draw.positive(rows, k, dtype=torch.float32)), dim=1)
    if "empty" in case.with_:
        partials = torch.stack((torch.zeros_like(partials), partials, torch.zeros_like(partials)), dim=1).flatten(0, 1)
    wide = torch.promote_types(case.dtype, torch.float32)
    return {"partials": partials.to(draw.device, wide), **_affine(case, draw)}


def _gram(case, draw):
    weight = draw.filters(case.shape.k, case.shape.c, 1, 1)
    return {"z": draw.map(*draw.input_size), **draw.prologue(), "weight": weight, "stride": case.shape.stride.h}


def _gram_finalize(case, draw):
    s, wide = case.shape, torch.promote_types(case.dtype, torch.float32)
    a = draw.normal(s.gemm_m, s.c, dtype=wide) @ draw.normal(s.c, s.c, dtype=wide) / s.c**0.5
    center = torch.full((s.c,), case.offset, dtype=wide, device=draw.device)
    about = a.double()
    sums = {"center": center, "total": about.sum(0), "gram": about.T @ about, "count": s.gemm_m}
    return {**sums, "weight": draw.filters(s.k, s.c, 1, 1), **_affine(case, draw)}


def _conv1x1_bn_add_act(case, draw):
    s = case.shape
    arguments = {"z": draw.map(*draw.input_size), **draw.prologue(), "weight": draw.filters(s.k, s.c, 1, 1)}
    norm = {"scale": draw.scale(s.k), "shift": draw.vector(s.k)}
    return {**arguments, **norm, **draw.residual(), "stride": tuple(s.stride), "act": draw.act()}


def _bn_add_act(case, draw):
    k = case.shape.k
    norm = {"z": draw.map(*draw.output_size), "scale": draw.scale(k), "shift": draw.vector(k)}
    return {**norm, **draw.residual(), "act": draw.act()}


def _skip(case, draw):
    """With "skip": a gradient is added; "skip_out": masked by an output; "skip_2": at every second pixel."""
    s, stride = case.shape, 2 if "skip_2" in case.with_ else 1
    size = (s.n, s.c, -(-s.h // stride), -(-s.w // stride))
    masked = "skip_out" in case.with_
    skip = draw.map(*size) if masked or "skip" in case.with_ else None
    return {"skip": skip, "skip_out": draw.activated(*size) if masked else None, "skip_stride": stride}


def _conv_dgrad(case, draw):
    """With "below": a norm and ReLU made the input; "block": a block did, "block_sums": whose last norm wants sums."""
    s, size = case.shape, draw.input_size
    below = dict.fromkeys(("below_z", "below_scale", "below_shift", "below_mean", "below_out"))
    if "below" in case.with_:
        below |= {"below_z": draw.map(*size), "below_scale": draw.scale(s.c), "below_shift": draw.vector(s.c)}
        below["below_mean"] = draw.vector(s.c)
    if "block_sums" in case.with_:
        below |= {"below_z": draw.map(*size), "below_mean": draw.vector(s.c)}
    if "block_sums" in case.with_ or "block" in case.with_:
        below["below_out"] = draw.activated(*size)
    geometry = {"input_size": list(size), "stride": tuple(s.stride), "padding": tuple(s.padding)}
    return {**draw.bn_backward(), "weight": draw.filters(s.k, s.c, s.r, s.s), **geometry, **below, **_skip(case, draw)}


def _conv1x1_backward(case, draw):
    """With "rectified": the input is a ReLU's output."""
    s, rectified = case.shape, "rectified" in case.with_
    x = draw.activated(*draw.input_size) if rectified else draw.map(*draw.input_size)
    operands = {**draw.bn_backward(), "weight": draw.filters(s.k, s.c, 1, 1), "x": x, "rectified": rectified}
    return {**operands, **_skip(case, draw)}


def _conv_wgrad(case, draw):
    s = case.shape
    geometry = {"weight_size": [s.k, s.c, s.r, s.s], "stride": tuple(s.stride), "padding": tuple(s.padding)}
    return {**draw.bn_backward(), "x": draw.map(*draw.input_size), **draw.prologue(), **geometry}


def _gram_products(case, draw):
    """With "out": the gradient is masked by an output.  The centre is the offset that the prologue adds."""
    s = case.shape
    out = draw.activated(*draw.output_size) if "out" in case.with_ else None
    maps = {"grad": draw.map(*draw.output_size), "out": out, "z": draw.map(*draw.input_size), **draw.prologue()}
    center = torch.full((s.c,), case.offset, device=draw.device)
    return {**maps, "center": center, "weight": draw.filters(s.k, s.c), "stride": s.stride.h}


def _gram_backward_finish(case, draw):
    size, c = draw.input_size, case.shape.c
    quadratic = draw.normal(c, c, dtype=torch.float32) / (4 * c**0.5)
    center = torch.full((c,), case.offset, device=draw.device)
    vectors = {"quadratic": quadratic, "constant": draw.vector(c), "below_mean": draw.vector(c)}
    return {"t": draw.map(*size), "z": draw.map(*size), **draw.prologue(), "center": center, **vectors}


def _pool(case) -> dict[str, int]:
    """The shape's filter is the window."""
    s = case.shape
    return {"kernel": s.r, "stride": s.stride.h, "padding": s.padding.h}


def _bn_relu_maxpool(case, draw):
    c = case.shape.c
    return {"z": draw.map(*draw.input_size), "scale": draw.scale(c), "shift": draw.vector(c), **_pool(case)}


def _bn_relu_maxpool_backward(case, draw):
    """The arg max is what torch's pooling gives, found with unfold."""
    s, pool = case.shape, _pool(case)
    forward = _bn_relu_maxpool(case, draw)
    wide = torch.promote_types(case.dtype, torch.float32)
    scale, shift = (forward[name].to(wide).view(1, -1, 1, 1) for name in ("scale", "shift"))
    a = (forward["z"].to(wide) * scale + shift).relu().to(case.dtype)
    padded = torch.nn.functional.pad(a.to(wide), (s.padding.h,) * 4, value=-torch.inf)
    windows = padded.unfold(2, s.r, s.stride.h).unfold(3, s.r, s.stride.h).flatten(4)
    argmax = windows.argmax(4).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    maps = {"grad": draw.map(*argmax.shape), "argmax": argmax, "z": forward["z"]}
    vectors = {"scale": forward["scale"], "shift": forward["shift"], "mean": draw.vector(s.c)}
    return {**maps, **vectors, **pool}


def _bn_backward_apply(case, draw):
    return draw.bn_backward()


def _bn_act_backward(case, draw):
    out = draw.activated(*draw.output_size) if "out" in case.with_ else None
    maps = {"grad": draw.map(*draw.output_size), "out": out, "z": draw.map(*draw.output_size)}
    return {**maps, "mean": draw.vector(case.shape.k)}


ARGUMENTS: dict[str, Callable[..., dict[str, Any]]] = {name: globals()[f"_{name}"] for name in OUTPUTS}


def moments(partials: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of partials, merged in float64 so that the merging adds no error."""
    count, mean, m2 = merge(partials.double())
    return mean.to(partials.dtype), (m2 / count).to(partials.dtype)


def far_means(z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, stride: int) -> tuple[Tensor, int]:
    """The centre that the Gram matrix of the whole map, in float64, would be taken about, and its pixels."""
    a = z[:, :, ::stride, ::stride].double()
    if in_scale is not None:
        a = (a * in_scale.double().view(1, -1, 1, 1) + in_shift.double().view(1, -1, 1, 1)).relu()
    mean, std = a.mean((0, 2, 3)), a.std((0, 2, 3), correction=0)
    return torch.where(mean > 4 * std, mean, 0), a.numel() // a.shape[1]


def _gram_moments(arguments: dict, center: Tensor, total: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and the second moment about `far_means`."""
    about, count = far_means(*(arguments[name] for name in ("z", "in_scale", "in_shift", "stride")))
    average, away = total.double() / count, center.double() - about
    moment = gram.double() / count + torch.outer(away, average) + torch.outer(average, away) + torch.outer(away, away)
    return (center.double() + average).to(center.dtype), moment.to(center.dtype)


def comparable(op: str, function: Callable) -> Callable:
    """`function`, an implementation of `op`, returning what `OUTPUTS[op]` names."""

    @functools.wraps(function)
    def call(**arguments) -> tuple[Tensor, ...]:
        result = function(**arguments)
        if op == "conv_stats":
            return result[0], *moments(result[1])
        if op == "channel_stats":
            return moments(result)
        if op == "gram":
            return _gram_moments(arguments, *result)
        if op == "bn_relu_maxpool" or (op == "conv_dgrad" and arguments["below_z"] is None):
            return result[:1]
        return result

    return call
