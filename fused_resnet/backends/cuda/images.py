"""The convolution of a ResNet's images over the compiled kernels: 7x7 of stride 2 and padding 3, 3 -> 64 channels."""

from __future__ import annotations

from torch import Tensor

from ...errors import BackendError
from ...shapes import output_extent
from .availability import IMAGE_CHANNELS
from .launch import ask, dense_nhwc, dense_or_none, floats_like, map_like, run, vector

SIZE, STRIDE, PADDING = 7, 2, 3


def _extents(x: Tensor) -> tuple[int, int, int]:
    n, _, h, w = x.shape
    return n, h, w


def _output_like(x: Tensor, weight: Tensor) -> Tensor:
    p, q = (output_extent(extent, SIZE, STRIDE, PADDING) for extent in x.shape[2:])
    return map_like(x, (x.shape[0], weight.shape[0], p, q))


def _refuse_prologue(in_scale: Tensor | None) -> None:
    if in_scale is not None:
        raise BackendError(
            "backend 'cuda' cannot run this call: its convolutions of images with 3 channels take no in_scale and"
            " in_shift; normalise the images first"
        )


def convolve_act(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool
) -> Tensor:
    """`act(conv(x, weight) * scale + shift + residual)`; residual of the output's size, or None."""
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    y = _output_like(x, weight)
    run("stem_act", x, weight, vector(scale), vector(shift), dense_or_none(residual), y, x.dtype, *_extents(x), relu)
    return y


def convolve_stats(x: Tensor, weight: Tensor, in_scale: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """`z = conv(x, weight)`, and partials (rows, 3, K) of it, each of at most 128 pixels or merged.

    Raises:
        BackendError: there is an in_scale.
    """
    _refuse_prologue(in_scale)
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    z = _output_like(x, weight)
    tiles = ask("stem_partial_rows", x, *_extents(x))
    partials = floats_like(x, tiles, 3, weight.shape[0])
    run("stem_stats", x, weight, z, partials, x.dtype, *_extents(x))
    if tiles == rows:
        return z, partials
    # a tile is a box of pixels, and where boxes reach beyond the map there are more of them than runs of 128
    merged = floats_like(x, rows, 3, weight.shape[0])
    run("merge_partials", partials, merged, tiles, rows, weight.shape[0])
    return z, merged


def weight_gradient(
    gradient: tuple[Tensor | None, ...], x: Tensor, in_scale: Tensor | None, weight_size: list[int]
) -> Tensor:
    """The gradient of the weight, float32 and channels_last, from g, z, a, b and c; torch sums the splits, in order.

    A NaN or an infinity may make a NaN of more taps than torch's does.

    Raises:
        BackendError: there is an in_scale.
    """
    _refuse_prologue(in_scale)
    x = dense_nhwc(x)
    splits = ask("stem_wgrad_splits", x, *_extents(x))
    partials = floats_like(x, splits, weight_size[0], SIZE, SIZE, IMAGE_CHANNELS)
    run("stem_wgrad", *gradient, x, partials, splits, x.dtype, *_extents(x))
    return partials.sum(0).permute(0, 3, 1, 2)
