"""The gradients of 1x1 convolutions over the compiled kernels; see `fused_resnet.ops.training`."""

from __future__ import annotations

from torch import Tensor

from .launch import ask, bn_backward_operands, dense_nhwc, dense_or_none, floats_like, map_like, nhwc, run, vector
from .passes import with_sums

ONE_READ_FILTERS, ONE_READ_CHANNELS = 64, 256  # of conv1x1_backward


def pointwise_dgrad(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    input_size: list[int],
    stride: int,
    below_z: Tensor | None,
    below_scale: Tensor | None,
    below_shift: Tensor | None,
    below_mean: Tensor | None,
    below_out: Tensor | None,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_dgrad` of a 1x1 convolution: one kernel, which also writes the pixels that a stride leaves out.

    Raises:
        BackendError: a skip_stride that is neither 1 nor 2.
    """
    n, channels, h, w = input_size
    skip_stride = 1 if skip is None else skip_stride
    dx, partials = map_like(g, tuple(input_size)), None
    if below_z is not None:
        rows = ask("conv1x1_dgrad_partial_rows", g, n, h, w, stride, skip_stride)
        partials = floats_like(g, rows, 2, channels)
    below = (dense_or_none(below_z), vector(below_scale), vector(below_shift), vector(below_mean))
    block = (dense_or_none(below_out), dense_or_none(skip), dense_or_none(skip_out), skip_stride)
    operands = (*bn_backward_operands(g, z, a, b, c), dense_nhwc(weight))
    extents = (n, h, w, channels, weight.shape[0], stride)
    run("conv1x1_dgrad", *operands, *below, *block, dx, partials, g.dtype, *extents)
    return with_sums(dx, partials)


def pointwise_wgrad(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    x: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    stride: int,
) -> Tensor:
    """`conv_wgrad` of a 1x1 convolution, float32 and channels_last; the splits are summed by torch, in order."""
    x, filters = dense_nhwc(x), g.shape[1]
    extents = (*nhwc(x), filters, stride)
    splits = ask("conv1x1_wgrad_splits", x, *extents)
    partials = floats_like(x, splits, filters, 1, 1, x.shape[1])
    maps = (*bn_backward_operands(g, z, a, b, c), x, vector(in_scale), vector(in_shift))
    run("conv1x1_wgrad", *maps, partials, splits, x.dtype, *extents)
    return _summed(partials)


def conv1x1_backward(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    x: Tensor,
    rectified: bool,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor]:
    """Both gradients of a 1x1 convolution, from one read of every map where a block can hold the products.

    That is up to 64 filters and 256 channels, as in the first stage of a ResNet.  Beyond, and with a strided skip, one
    kernel each: g and z are read twice, and so is x where it masks.
    """
    held = weight.shape[0] <= ONE_READ_FILTERS and x.shape[1] <= ONE_READ_CHANNELS
    if held and (skip is None or skip_stride == 1):
        return _one_read(g, z, a, b, c, weight, x, rectified, skip, skip_out)
    below = (None, None, None, None, x if rectified else None)
    dx, _, _ = pointwise_dgrad(
        g, z, a, b, c, weight, list(x.shape), 1, *below, skip, skip_out, skip_stride
    )  # fmt: skip
    return dx, pointwise_wgrad(g, z, a, b, c, x, None, None, 1)


def _one_read(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    x: Tensor,
    rectified: bool,
    skip: Tensor | None,
    skip_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    x, filters = dense_nhwc(x), weight.shape[0]
    extents = (*nhwc(x), filters)
    rows = ask("conv1x1_backward_rows", x, *extents)
    dx, partials = map_like(x, tuple(x.shape)), floats_like(x, rows, filters, 1, 1, x.shape[1])
    operands = (*bn_backward_operands(g, z, a, b, c), dense_nhwc(weight), x, rectified)
    added = (dense_or_none(skip), dense_or_none(skip_out))
    run("conv1x1_backward", *operands, *added, dx, partials, rows, x.dtype, *extents)
    return dx, _summed(partials)


def _summed(partials: Tensor) -> Tensor:
    """A weight's gradient, channels_last, from its partials (rows, K, 1, 1, C): their sum, in order."""
    return partials.sum(0).permute(0, 3, 1, 2)
