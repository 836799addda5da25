"""What the training ops demand of their arguments, beyond `fused_resnet.ops.checks`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...shapes import ConvShape, output_extent
from .. import checks

TILE = 128  # pixels to a row of partials
WIDE = (torch.float32, torch.float64)
MAX_POOL_KERNEL = 16  # the place of a maximum in its window fits a byte

feature_map = checks.feature_map
activation = checks.activation


def wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def tiles(n: int, p: int, q: int) -> int:
    """Rows of partials for an output of n x p x q pixels."""
    return (n * p * q + TILE - 1) // TILE


class Arguments:
    """The checks of one call of `op`; `first` is the tensor that the others must go with."""

    def __init__(self, op: str, name: str, first: Tensor) -> None:
        self.op, self.name, self.first = op, name, first

    def refuse(self, message: str) -> None:
        raise ArgumentError(f"{self.op}: {message}")

    def device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.first.device:
            self.refuse(f"{self.name} is on {self.first.device} but {name} is on {tensor.device}; move one of them")

    def alike(self, name: str, tensor: Tensor) -> None:
        """`tensor` has the first one's device and dtype."""
        self.device(name, tensor)
        if tensor.dtype != self.first.dtype:
            self.refuse(f"{self.name} is {self.first.dtype} but {name} is {tensor.dtype}; convert one of them")

    def feature_map(self, name: str, tensor: Tensor, size: tuple[int, ...] | None = None) -> None:
        """A map that goes with the first tensor, of `size` where that is given."""
        checks.feature_map(self.op, name, tensor)
        self.alike(name, tensor)
        if size is not None and tuple(tensor.shape) != tuple(size):
            self.refuse(f"{name} must have shape {tuple(size)}, got {tuple(tensor.shape)}")

    def floating(self, name: str, tensor: Tensor, size: tuple[int, ...]) -> None:
        """Floating-point numbers of `size` on the first tensor's device, in any precision."""
        if tuple(tensor.shape) != tuple(size):
            self.refuse(f"{name} must have shape {tuple(size)}, got {tuple(tensor.shape)}")
        if tensor.dtype not in checks.FLOATING:
            self.refuse(f"{name} must be floating point, got {tensor.dtype}")
        self.device(name, tensor)

    def vectors(self, channels: int, **vectors: Tensor | None) -> None:
        """None, or one number a channel."""
        for name, vector in vectors.items():
            if vector is not None:
                self.floating(name, vector, (channels,))

    def together(self, **tensors: Tensor | None) -> None:
        """All given or all None."""
        missing = [name for name, tensor in tensors.items() if tensor is None]
        if missing and len(missing) < len(tensors):
            self.refuse(f"{', '.join(tensors)} belong together, but {', '.join(missing)} is None; pass all or none")

    def prologue(self, channels: int, in_scale: Tensor | None, in_shift: Tensor | None) -> None:
        self.vectors(channels, in_scale=in_scale, in_shift=in_shift)
        self.together(in_scale=in_scale, in_shift=in_shift)

    def bn_backward(self, g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> None:
        """The prologue `a * g + b * z + c`."""
        self.vectors(g.shape[1], a=a, b=b, c=c)
        self.together(b=b, c=c)
        if z is not None:
            self.feature_map("z", z, g.shape)
        elif b is not None:
            self.refuse("z is None, but b and c are given, which multiply and follow it; pass z")

    def at_least(self, least: int, **numbers: int) -> None:
        for name, number in numbers.items():
            if number < least:
                self.refuse(f"{name} must be at least {least}, got {number}")

    def convolution(self, input_size, weight_size, stride, padding, g: Tensor) -> ConvShape:
        """The convolution whose output's gradient is g, without groups or dilation."""
        for name, size in (("input_size", input_size), ("weight_size", weight_size)):
            if len(size) != 4:
                self.refuse(f"{name} must be four numbers, got {list(size)}")
        for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
            if len(value) != 2 or min(value) < least:
                self.refuse(f"{name} must be two integers of at least {least}, got {list(value)}")
        if input_size[1] != weight_size[1]:
            self.refuse(f"filters {tuple(weight_size)} do not go with an input {tuple(input_size)}: channels differ")
        shape = ConvShape(*input_size, weight_size[0], *weight_size[2:], tuple(stride), tuple(padding))
        expected = (shape.n, shape.k, shape.p, shape.q)
        if tuple(g.shape) != expected:
            self.refuse(
                f"convolving {tuple(input_size)} with {tuple(weight_size)}, stride {list(stride)} and padding"
                f" {list(padding)}, gives {expected}, which g of {tuple(g.shape)} is no gradient of"
            )
        return shape

    def skip(self, input_size, skip: Tensor | None, skip_out: Tensor | None, skip_stride: int) -> None:
        """What a shortcut adds to the gradient of an input, at every `skip_stride`-th pixel, and what masks it."""
        self.at_least(1, skip_stride=skip_stride)
        size = (*input_size[:2], *(output_extent(extent, 1, skip_stride, 0) for extent in input_size[2:]))
        for name, tensor in (("skip", skip), ("skip_out", skip_out)):
            if tensor is not None:
                self.feature_map(name, tensor, size)
        if skip_out is not None and skip is None:
            self.refuse("skip_out is given without the skip that it masks; pass skip")

    def residual(self, residual: Tensor | None, size: tuple[int, int, int, int], residual_stride: int) -> None:
        """None, or what can be added to an output of `size`: directly or as an option-A shortcut."""
        if residual is not None:
            self.feature_map("residual", residual)
        n, k, p, q = size
        checks.residual_map(self.op, self.first, residual, ConvShape(n, k, p, q, k, 1, 1), residual_stride)

    def pool(self, h: int, w: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
        """The extents after pooling h x w pixels with a square window."""
        if not 1 <= kernel <= MAX_POOL_KERNEL or stride < 1 or not 0 <= padding <= kernel // 2:
            self.refuse(
                f"kernel must be 1 to {MAX_POOL_KERNEL}, stride at least 1 and padding at most half the kernel,"
                f" got {kernel}, {stride} and {padding}"
            )
        p, q = (output_extent(extent, kernel, stride, padding) for extent in (h, w))
        if p < 1 or q < 1:
            self.refuse(f"{self.name} of {h} x {w} pixels is smaller than the pooling window of {kernel}")
        return p, q
