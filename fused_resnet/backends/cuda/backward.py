"""The gradients of 3x3 convolutions over the compiled kernels; see `fused_resnet.ops.training`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import BackendError
from ..reference_parts import masked
from .inference import PACKED_LIMIT
from .launch import ask, dense_nhwc, dense_or_none, floats_like, map_like, multiprocessors, nhwc, run, vector
from .training import sums_of


def _gradient(g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
    """The BN-backward prologue's operands; z is left out where its slope is."""
    return dense_nhwc(g), None if b is None else dense_or_none(z), vector(a), vector(b), vector(c)


def conv_dgrad(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    input_size: list[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    below_z: Tensor | None,
    below_scale: Tensor | None,
    below_shift: Tensor | None,
    below_mean: Tensor | None,
    below_out: Tensor | None,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a convolution's input; a skip that is masked is masked by torch first.

    Raises:
        BackendError: a skip or a block below with a convolution of stride 2, or a strided skip.
    """
    if (skip is not None or below_out is not None) and (stride[0] != 1 or skip_stride != 1):
        raise BackendError(
            "backend 'cuda' cannot run this call: its conv_dgrad adds a skip and masks by a block below at stride 1"
            f" alone, got stride {stride[0]} and skip_stride {skip_stride}"
        )
    if skip is not None:
        skip = masked(skip, skip_out)
    n, channels, h, w = input_size
    dx = map_like(g, tuple(input_size))
    # one row of partial sums a block, of which each multiprocessor has one
    partials = None if below_z is None else floats_like(g, multiprocessors(g.device), 2, channels)
    turned = weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
    below = (dense_or_none(below_z), vector(below_scale), vector(below_shift), vector(below_mean))
    maps = (dense_or_none(below_out), dense_or_none(skip), dx, partials, 0 if partials is None else len(partials))
    run("conv3x3_halo_dgrad", *_gradient(g, z, a, b, c), turned, *below, *maps, g.dtype, n, h, w, channels, stride[0])
    if partials is None:
        return dx, g.new_empty(0, dtype=torch.float32), g.new_empty(0, dtype=torch.float32)
    return dx, *sums_of(partials)


def conv_wgrad(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    x: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight_size: list[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The gradient of a convolution's weight, float32 and channels_last; the splits are summed by torch, in order.

    A NaN or an infinity in x may make a NaN of more taps of its channel than torch's does."""
    x = dense_nhwc(x)
    n, h, w, channels = nhwc(x)
    splits = ask("conv3x3_halo_wgrad_splits", x, n, h, w, channels, stride[0])
    partials = floats_like(x, splits, weight_size[0], 3, 3, channels)
    norm = (vector(in_scale), vector(in_shift), PACKED_LIMIT)
    arguments = (*_gradient(g, z, a, b, c), x, *norm, partials, splits)
    run("conv3x3_halo_wgrad", *arguments, x.dtype, n, h, w, channels, stride[0])
    return partials.sum(0).permute(0, 3, 1, 2)
