"""The passes over maps and vectors of a training step, over the compiled kernels; see `fused_resnet.ops.training`.

What a kernel sums over pixels it leaves as a row of partials a run of pixels, which a second kernel adds up: in a fixed
order both, so that a call repeats bit by bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...shapes import output_extent
from .launch import dense_nhwc, dense_or_none, floats_like, map_like, nhwc, run, vector

STATS_PIXELS = 128  # to a row of partials, as csrc/kernels/passes/statistics.cuh has it
MAX_SUM_ROWS = 1024  # of partial sums: enough blocks to fill a GPU, few enough to add up
MAX_FINALIZE_ROWS = 256  # that one block reads; more are merged first, by many blocks
MERGED_ROWS = 64


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def _sum_runs(z: Tensor) -> tuple[int, Tensor]:
    """The pixels to a row of partial sums over z's, and these (rows, 2, K)."""
    n, k, h, w = z.shape
    pixels = n * h * w
    run_pixels = max(STATS_PIXELS, ceil_div(pixels, MAX_SUM_ROWS))
    return run_pixels, floats_like(z, ceil_div(pixels, run_pixels), 2, k)


def sums_of(partials: Tensor) -> tuple[Tensor, Tensor]:
    """The two (K,) sums of partials (rows, 2, K)."""
    rows, _, k = partials.shape
    first, second = floats_like(partials, k), floats_like(partials, k)
    run("sum_partials", partials, first, second, rows, k)
    return first, second


def with_sums(dx: Tensor, partials: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What conv_dgrad returns: dx and the sums of partials (rows, 2, K), empty where none are wanted."""
    if partials is None:
        return dx, dx.new_empty(0, dtype=torch.float32), dx.new_empty(0, dtype=torch.float32)
    return dx, *sums_of(partials)


def channel_stats(z: Tensor) -> Tensor:
    """The (count, mean, M2) of every 128 pixels of z (N, K, P, Q), as (tiles, 3, K)."""
    z = dense_nhwc(z)
    n, k, p, q = z.shape
    partials = floats_like(z, ceil_div(n * p * q, STATS_PIXELS), 3, k)
    run("channel_stats", z, partials, z.dtype, *nhwc(z))
    return partials


def bn_finalize(
    partials: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean, biased variance, invstd, scale and shift, (K,) each, from partials (tiles, 3, K)."""
    partials = partials.contiguous()
    rows, _, k = partials.shape
    if rows == 0:  # an empty batch: nothing is merged
        partials, rows = partials.new_zeros(1, 3, k), 1
    if rows > MAX_FINALIZE_ROWS:
        merged = floats_like(partials, MERGED_ROWS, 3, k)
        run("merge_partials", partials, merged, rows, MERGED_ROWS, k)
        partials, rows = merged, MERGED_ROWS
    outputs = tuple(floats_like(partials, k) for _ in range(5))
    run("bn_finalize", partials, vector(bn_weight), vector(bn_bias), *outputs, float(eps), rows, k)
    return outputs


def bn_add_act(
    z: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, residual_stride: int, act: str
) -> Tensor:
    """`act(z * scale + shift + shortcut(residual))` in one pass.

    Option A pads by multiples of 16 channels, eight on each side at least.
    """
    z, residual = dense_nhwc(z), dense_or_none(residual)
    y = map_like(z, tuple(z.shape))
    residual_extents = (0, 0, 0) if residual is None else nhwc(residual)[1:]
    vectors = (vector(scale), vector(shift))
    run(
        "bn_add_act", z, *vectors, residual, y, z.dtype, *nhwc(z), *residual_extents, residual_stride, act == "relu"
    )  # fmt: skip
    return y


def bn_act_backward(grad: Tensor, out: Tensor | None, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`g = grad` where `out > 0`, and the sums of g and of `g * (z - mean)`."""
    grad, out, z = dense_nhwc(grad), dense_or_none(out), dense_nhwc(z)
    g = map_like(grad, tuple(grad.shape))
    run_pixels, partials = _sum_runs(z)
    run("bn_act_backward", grad, out, z, vector(mean), g, partials, z.dtype, *nhwc(z), run_pixels)
    return g, *sums_of(partials)


def bn_backward_apply(g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> Tensor:
    """`a * g + b * z + c`, or `a * g` where b and c are None, in one pass."""
    g, z = dense_nhwc(g), None if b is None else dense_or_none(z)
    dz = map_like(g, tuple(g.shape))
    run("bn_backward_apply", g, z, vector(a), vector(b), vector(c), dz, g.dtype, *nhwc(g))
    return dz


def bn_relu_maxpool(
    z: Tensor, scale: Tensor, shift: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """The pooled map of `relu(z * scale + shift)`, and where in its window each maximum lies."""
    z = dense_nhwc(z)
    n, k, h, w = z.shape
    size = (n, k, *(output_extent(extent, kernel, stride, padding) for extent in (h, w)))
    y, argmax = map_like(z, size), map_like(z, size, torch.uint8)
    run("bn_relu_maxpool", z, vector(scale), vector(shift), y, argmax, z.dtype, *nhwc(z), kernel, stride, padding)
    return y, argmax


def bn_relu_maxpool_backward(
    grad: Tensor,
    argmax: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    kernel: int,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The pooling's gradient masked by the ReLU, and its sums; each pixel gathers from the windows that cover it."""
    grad, argmax, z = dense_nhwc(grad), dense_nhwc(argmax), dense_nhwc(z)
    g = map_like(z, tuple(z.shape))
    run_pixels, partials = _sum_runs(z)
    maps, vectors = (grad, argmax, z), (vector(scale), vector(shift), vector(mean))
    window = (kernel, stride, padding)
    run("bn_relu_maxpool_backward", *maps, *vectors, g, partials, z.dtype, *nhwc(z), *window, run_pixels)
    return g, *sums_of(partials)
