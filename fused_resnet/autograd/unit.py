"""A convolution with its batch norm, as blocks and stem hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.distributed import ProcessGroup

from ..ops import training as raw
from . import grouped, norm
from .norm import Affine, Normalized


@dataclass(frozen=True)
class Geometry:
    """A convolution's stride, padding, dilation and groups; its norm's eps, and the process group whose ranks share
    the norm's statistics, or None."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    eps: float
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    group: ProcessGroup | None = None

    @property
    def plain(self) -> bool:
        """Whether the raw ops take the convolution; else it is ATen's, see `grouped`."""
        return self.groups == 1 and self.dilation == (1, 1)


class Unit(NamedTuple):
    """A convolution's weight, in the dtype that it computes in, and its norm."""

    weight: Tensor
    affine: Affine
    geometry: Geometry

    @property
    def window(self) -> tuple:
        return self.geometry.stride, self.geometry.padding

    @property
    def full_window(self) -> tuple:
        return *self.window, self.geometry.dilation, self.geometry.groups

    def forward(self, x: Tensor, in_scale: Tensor | None, in_shift: Tensor | None) -> tuple[Tensor, Normalized]:
        """The convolution's raw output, and what normalises it."""
        read = (x, self.weight, in_scale, in_shift, *self.full_window)
        if self.geometry.plain:
            z, partials = raw.conv_stats(*read)
        else:
            z = grouped.convolve(*read)
            partials = raw.channel_stats(z) if self.affine.running_mean is None else None
        return z, norm.from_partials(self.affine, partials, z)


def gradient_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` in the dtype of `tensor`, and in its strides where only those of extents of one differ.

    A 1x1 filter is contiguous in either layout; DistributedDataParallel wants the parameter's own strides.
    """
    gradient = gradient.to(tensor.dtype)
    if gradient.is_contiguous() and tensor.is_contiguous():
        return gradient.as_strided(tensor.shape, tensor.stride())
    return gradient
