"""1x1 convolutions over the compiled kernels: forward, and both products of a gradient that is read once."""

from __future__ import annotations

from torch import Tensor

from ...shapes import output_extent
from ..promises import zero_counts
from ..reference.parts import shortcut
from .launch import ask, dense_nhwc, dense_or_none, floats_like, map_like, nhwc, run, vector, weights_ready

SPLIT_PRODUCTS = 8192  # float32 a block leaves of a tile that it shares, as conv1x1/forward/launch.h has it


def _output_size(x: Tensor, filters: int, stride: int) -> tuple[int, int, int, int]:
    p, q = (output_extent(extent, 1, stride, 0) for extent in x.shape[2:])
    return x.shape[0], filters, p, q


def _norm(in_scale: Tensor | None, in_shift: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return vector(in_scale), vector(in_shift)


def shared_tiles(x: Tensor, tiles: int, splits: int, products: int) -> tuple[Tensor | None, Tensor | None, int]:
    """What `splits` blocks that share each of the tiles work in: products, arrivals, and `splits` itself."""
    if splits == 1:
        return None, None, 1
    return floats_like(x, tiles, splits, products), zero_counts(tiles, x.device), splits


def _sharing(x: Tensor, filters: int, stride: int) -> tuple[Tensor | None, Tensor | None, int]:
    """What blocks that share a tile work in: products, arrivals, and how many share one; 1 where tiles suffice."""
    n, h, w, c = nhwc(x)
    splits = ask("conv1x1_splits", x, n, h, w, c, filters, stride)
    tiles = ask("conv1x1_split_tiles", x, n, h, w, filters, stride)
    return shared_tiles(x, tiles, splits, SPLIT_PRODUCTS)


def convolve_act(
    x: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: int,
    relu: bool,
) -> Tensor:
    """`act(conv1x1(prologue(x), weight) * scale + shift + residual)`; residual of the output's size, or None."""
    ready = weights_ready(weight)
    x, weight, residual = dense_nhwc(x), dense_nhwc(weight), dense_or_none(residual)
    filters = weight.shape[0]
    y = map_like(x, _output_size(x, filters, stride))
    sharing = _sharing(x, filters, stride) if in_scale is None else (None, None, 1)
    vectors = (*_norm(in_scale, in_shift), vector(scale), vector(shift))
    run("conv1x1_act", x, weight, *vectors, residual, y, *sharing, x.dtype, *nhwc(x), filters, stride, relu, ready)
    return y


def convolve_stats(
    x: Tensor, weight: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, stride: int, rows: int
) -> tuple[Tensor, Tensor]:
    """`z = conv1x1(prologue(x), weight)`, and partials (rows, 3, K) of it, each of at most 128 pixels or merged."""
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    filters = weight.shape[0]
    z = map_like(x, _output_size(x, filters, stride))
    n, h, w, _ = nhwc(x)
    tiles = ask("conv1x1_partial_rows", x, n, h, w, stride)
    partials = floats_like(x, tiles, 3, filters)
    run("conv1x1_stats", x, weight, *_norm(in_scale, in_shift), z, partials, x.dtype, *nhwc(x), filters, stride)
    if tiles == rows:
        return z, partials
    # at stride 2 a tile is a box of pixels, and there are a few more of them than runs of 128
    merged = floats_like(x, rows, 3, filters)
    run("merge_partials", partials, merged, tiles, rows, filters)
    return z, merged


def conv1x1_bn_add_act(
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: tuple[int, int],
    residual_stride: int,
    act: str,
) -> Tensor:
    """`act(scale * conv1x1(prologue(z), weight) + shift + shortcut(residual))`, an option-A shortcut made by torch."""
    if residual is not None:
        residual = shortcut(residual, weight.shape[0], residual_stride)
    return convolve_act(z, in_scale, in_shift, weight, scale, shift, residual, stride[0], act == "relu")


def gram_products(
    grad: Tensor,
    out: Tensor | None,
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    center: Tensor,
    weight: Tensor,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`g^T a` (K, C), the sums of g (K,), and `g @ weight` (N, C, P, Q), from one read of g, `grad` masked by `out`."""
    grad, out, z = dense_nhwc(grad), dense_or_none(out), dense_nhwc(z)
    filters, channels = weight.shape
    t = map_like(z, (z.shape[0], channels, *grad.shape[2:]))
    extents = (*nhwc(z), filters, stride)
    rows = ask("conv1x1_products_rows", z, *extents)
    size = filters * (channels + 1)
    products, partials = floats_like(z, size), floats_like(z, rows, size)
    maps = (grad, out, z, *_norm(in_scale, in_shift), vector(center), weight.contiguous(), t)
    run("conv1x1_products", *maps, products, partials, rows, z.dtype, *extents)
    matrix, sums = products.split((filters * channels, filters))
    # an op's outputs are its own, not two views of one
    return matrix.view(filters, channels).clone(), sums.clone(), t
