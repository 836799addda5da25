"""A training step's convolutions over the compiled kernels: 3x3 ones here, the others in files of their own.

See `fused_resnet.ops.training`.
"""

from __future__ import annotations

from torch import Tensor

from ...errors import BackendError
from ...shapes import output_extent
from . import images
from .availability import IMAGE_CHANNELS
from .conv1x1 import convolve_stats
from .conv1x1_gradients import pointwise_dgrad, pointwise_wgrad
from .inference import PACKED_LIMIT
from .launch import (
    ask,
    bn_backward_operands,
    dense_nhwc,
    dense_or_none,
    floats_like,
    map_like,
    multiprocessors,
    nhwc,
    run,
    vector,
)
from .passes import STATS_PIXELS, ceil_div, with_sums


def conv_stats(
    x: Tensor,
    weight: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """`z = conv(relu(x * in_scale + in_shift), weight)` and the (count, mean, M2) of runs of its pixels."""
    n, k = x.shape[0], weight.shape[0]
    extents = zip(x.shape[2:], weight.shape[2:], stride, padding)
    p, q = (output_extent(*axis) for axis in extents)
    rows = ceil_div(n * p * q, STATS_PIXELS)
    if weight.shape[2:] == (1, 1):
        return convolve_stats(x, weight, in_scale, in_shift, stride[0], rows)
    if x.shape[1] == IMAGE_CHANNELS:
        return images.convolve_stats(x, weight, in_scale, rows)
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    z = map_like(x, (n, k, p, q))
    partials = floats_like(x, rows, 3, k)
    norm = (vector(in_scale), vector(in_shift), PACKED_LIMIT)
    run("conv3x3_halo_stats", x, weight, *norm, z, partials, rows, x.dtype, *nhwc(x), k, stride[0])
    return z, partials


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
    """The gradient of a convolution's input.

    Raises:
        BackendError: a skip of another stride than the convolution's; a skip or a block below with stride 2 where the
            channels do not double.
    """
    if weight.shape[2:] == (1, 1):
        below = (below_z, below_scale, below_shift, below_mean, below_out)
        return pointwise_dgrad(g, z, a, b, c, weight, input_size, stride[0], *below, skip, skip_out, skip_stride)
    n, channels, h, w = input_size
    has_block = skip is not None or below_out is not None
    if (has_block and stride[0] != 1 and channels == len(weight)) or (skip is not None and skip_stride != stride[0]):
        raise BackendError(
            "backend 'cuda' cannot run this call: its conv_dgrad adds a skip of the convolution's own stride, and with"
            " stride 2 a skip and a block below only where the channels double, got"
            f" {channels} to {len(weight)} channels with stride {stride[0]} and skip_stride {skip_stride}"
        )
    dx = map_like(g, tuple(input_size))
    # one row of partial sums a block, of which each multiprocessor has one
    partials = None if below_z is None else floats_like(g, multiprocessors(g.device), 2, channels)
    turned = weight.flip(2, 3).permute(1, 2, 3, 0).contiguous()
    below = (dense_or_none(below_z), vector(below_scale), vector(below_shift), vector(below_mean))
    block = (dense_or_none(below_out), dense_or_none(skip), dense_or_none(skip_out))
    outputs = (dx, partials, 0 if partials is None else len(partials))
    maps = (*bn_backward_operands(g, z, a, b, c), turned, *below, *block, *outputs)
    run("conv3x3_halo_dgrad", *maps, g.dtype, n, h, w, channels, len(weight), stride[0])
    return with_sums(dx, partials)


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
    if weight_size[1] == IMAGE_CHANNELS:
        return images.weight_gradient(bn_backward_operands(g, z, a, b, c), x, in_scale, weight_size)
    if tuple(weight_size[2:]) == (1, 1):
        return pointwise_wgrad(g, z, a, b, c, x, in_scale, in_shift, stride[0])
    x = dense_nhwc(x)
    extents = (*nhwc(x), weight_size[0], stride[0])
    splits = ask("conv3x3_halo_wgrad_splits", x, *extents)
    partials = floats_like(x, splits, weight_size[0], 3, 3, weight_size[1])
    norm = (vector(in_scale), vector(in_shift), PACKED_LIMIT)
    arguments = (*bn_backward_operands(g, z, a, b, c), x, *norm, partials, splits)
    run("conv3x3_halo_wgrad", *arguments, x.dtype, *extents)
    return partials.sum(0).permute(0, 3, 1, 2)
