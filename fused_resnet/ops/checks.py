"""What every raw op demands of its arguments, said before a backend is chosen or anything is launched."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import ArgumentError
from ..shapes import ConvShape, output_extent

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ACTIVATIONS = ("relu", "identity")


def feature_map(op: str, name: str, tensor: Tensor) -> None:
    """`tensor` is a 4-D floating-point feature map with at least one channel and pixel."""
    if tensor.dim() != 4:
        raise ArgumentError(f"{op}: {name} must be 4-D (N, C, H, W), got {tensor.dim()}-D {tuple(tensor.shape)}")
    if tensor.dtype not in FLOATING:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise ArgumentError(f"{op}: {name} must be one of {expected}, got {tensor.dtype}")
    if 0 in tensor.shape[1:]:
        raise ArgumentError(
            f"{op}: {name} must have at least one channel and one pixel, got {tuple(tensor.shape)};"
            " only the batch may be 0"
        )


def same_kind(op: str, x: Tensor, name: str, other: Tensor) -> None:
    """`other` lies on x's device and has x's dtype."""
    if other.device != x.device:
        raise ArgumentError(f"{op}: x is on {x.device} but {name} is on {other.device}; move one of them")
    if other.dtype != x.dtype:
        raise ArgumentError(f"{op}: x is {x.dtype} but {name} is {other.dtype}; convert one of them, or use autocast")


def channel_vector(op: str, x: Tensor, name: str, vector: Tensor | None, channels: int) -> None:
    """`vector` is None or one floating-point number a channel, on x's device."""
    if vector is None:
        return
    if vector.dim() != 1 or vector.shape[0] != channels:
        raise ArgumentError(f"{op}: {name} must have shape ({channels},), one a filter, got {tuple(vector.shape)}")
    if vector.dtype not in FLOATING:
        raise ArgumentError(f"{op}: {name} must be floating point, got {vector.dtype}")
    if vector.device != x.device:
        raise ArgumentError(f"{op}: x is on {x.device} but {name} is on {vector.device}; move one of them")


def batch_norm_vectors(op: str, x: Tensor, channels: int, bn_weight, bn_bias, running_mean, running_var) -> None:
    """The four vectors of a BatchNorm in inference; the statistics come as a pair or not at all."""
    named = {"bn_weight": bn_weight, "bn_bias": bn_bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in named.items():
        channel_vector(op, x, name, vector, channels)
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ArgumentError(f"{op}: {missing} is None while the other statistic is given; pass both or neither")


def convolution(op: str, x: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> ConvShape:
    """The checked shape of convolving x with weight."""
    feature_map(op, "x", x)
    if weight.dim() != 4:
        raise ArgumentError(f"{op}: weight must be 4-D (K, C / groups, R, S), got {tuple(weight.shape)}")
    same_kind(op, x, "weight", weight)
    geometry = (x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups)
    # Symbolic sizes, which only fake tensors have, cannot be remembered.
    return (_conv_shape if isinstance(x, FakeTensor) else _remembered_shape)(op, *geometry)


def _conv_shape(op: str, x_size, weight_size, stride, padding, dilation, groups: int) -> ConvShape:
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(value) != 2 or min(value) < least:
            raise ArgumentError(f"{op}: {name} must be two integers of at least {least}, got {list(value)}")
    if groups < 1 or weight_size[0] % groups:
        raise ArgumentError(f"{op}: groups must divide the {weight_size[0]} filters, got {groups}")
    if x_size[1] != weight_size[1] * groups:
        raise ArgumentError(
            f"{op}: weight {tuple(weight_size)} with groups={groups} expects x to have {weight_size[1] * groups}"
            f" channels, got {x_size[1]} in x {tuple(x_size)}"
        )
    shape = ConvShape(*x_size, weight_size[0], *weight_size[2:], stride, padding, dilation, groups)
    if shape.p < 1 or shape.q < 1:
        raise ArgumentError(
            f"{op}: x of {shape.h} x {shape.w} pixels padded by {list(padding)} is smaller than the"
            f" {shape.r} x {shape.s} filter with dilation {list(dilation)}; give a larger image"
        )
    return shape


_remembered_shape = functools.lru_cache(maxsize=1024)(_conv_shape)


def residual_map(op: str, x: Tensor, residual: Tensor | None, shape: ConvShape, residual_stride: int) -> None:
    """`residual` is None, or what the convolution's output can be added to: directly or as an option-A shortcut."""
    if residual_stride < 1:
        raise ArgumentError(f"{op}: residual_stride must be at least 1, got {residual_stride}")
    if residual is None:
        return
    feature_map(op, "residual", residual)
    same_kind(op, x, "residual", residual)
    n, channels, h, w = residual.shape
    p, q = output_extent(h, 1, residual_stride, 0), output_extent(w, 1, residual_stride, 0)
    if (n, p, q) != (shape.n, shape.p, shape.q) or channels > shape.k:
        raise ArgumentError(
            f"{op}: the output is ({shape.n}, {shape.k}, {shape.p}, {shape.q}), to which a residual of"
            f" {tuple(residual.shape)} with residual_stride={residual_stride} cannot be added"
        )


def activation(op: str, act: str) -> None:
    if act not in ACTIVATIONS:
        raise ArgumentError(f"{op}: act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
