"""The training passes that belong to no convolution of ours: each reads and writes a map once.

Channels are arguments, specialised on being multiples of 16, so that few kernels serve all layers.
"""

import triton
import triton.language as tl

from ..common import pixel_of, relu, widen
from .common import (
    bn_backward,
    store_activated,
    store_statistics,
    store_sums,
    unless_rectified,
    unless_rectified_by,
    vector,
)

_EXTENTS = ["N", "H", "W", "P", "Q", "RES_H", "RES_W", "ROWS"]


@triton.jit
def tile_of(K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr):
    """(tile, rows, channels) of this program: the tiles of a run of pixels are neighbours."""
    tiles_n = tl.cdiv(K, BLOCK_N)
    pid = widen(tl.program_id(0), WIDE)
    tile = pid // tiles_n
    return tile, tile * BLOCK_M + tl.arange(0, BLOCK_M), pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit(do_not_specialize=_EXTENTS)
def channel_stats(
    z_ptr, y_ptr, ROWS, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """y (tiles, 3, K): count, mean and M2 of each BLOCK_M pixels of z (ROWS, K)."""
    tile, row, channel = tile_of(K, BLOCK_M, BLOCK_N, WIDE)
    row_inside = row < ROWS
    mask = row_inside[:, None] & (channel < K)[None, :]
    z = tl.load(z_ptr + (row * K)[:, None] + channel[None, :], mask=mask, other=0.0)
    store_statistics(y_ptr, tile, z, row_inside, channel, K)


@triton.jit(do_not_specialize=_EXTENTS)
def bn_add_act(
    z_ptr, y_ptr, scale_ptr, shift_ptr, residual_ptr, N, P, Q, RES_H, RES_W, K, RES_C,
    RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y = act(z * scale + shift + shortcut(residual)) for z and y (N, P, Q, K)."""
    _, row, channel = tile_of(K, BLOCK_M, BLOCK_N, WIDE)
    row_inside = row < widen(N, WIDE) * P * Q
    mask = row_inside[:, None] & (channel < K)[None, :]
    z = tl.load(z_ptr + (row * K)[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    image, p, q = pixel_of(row, P, Q)
    store_activated(
        z, y_ptr, scale_ptr, shift_ptr, residual_ptr, row, image, p, q, row_inside, channel,
        RES_H, RES_W, K, RES_C, RES_STRIDE, OPTION_A, RELU,
    )  # fmt: skip


@triton.jit(do_not_specialize=_EXTENTS)
def bn_act_backward(
    g_ptr, out_ptr, z_ptr, mean_ptr, y_ptr, sums_ptr, ROWS, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y = g where out > 0, and the sums of y and y * (z - mean) over each BLOCK_M pixels; all maps (ROWS, K)."""
    tile, row, channel = tile_of(K, BLOCK_M, BLOCK_N, WIDE)
    mask = (row < ROWS)[:, None] & (channel < K)[None, :]
    offset = (row * K)[:, None] + channel[None, :]
    g = tl.load(g_ptr + offset, mask=mask, other=0.0)
    if out_ptr is not None:
        g = unless_rectified(g, tl.load(out_ptr + offset, mask=mask, other=1.0)).to(g.dtype)
    tl.store(y_ptr + offset, g, mask=mask)
    z = tl.load(z_ptr + offset, mask=mask, other=0.0)
    store_sums(sums_ptr, tile, g, z, mean_ptr, channel, K)


@triton.jit(do_not_specialize=_EXTENTS)
def bn_backward_apply(
    g_ptr, z_ptr, a_ptr, b_ptr, c_ptr, y_ptr, ROWS, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y = a * g + b * z + c; all maps (ROWS, K)."""
    _, row, channel = tile_of(K, BLOCK_M, BLOCK_N, WIDE)
    channel_inside = channel < K
    mask = (row < ROWS)[:, None] & channel_inside[None, :]
    offset = (row * K)[:, None] + channel[None, :]
    a = vector(a_ptr, channel, channel_inside)
    b = vector(b_ptr, channel, channel_inside)
    c = vector(c_ptr, channel, channel_inside)
    tl.store(y_ptr + offset, bn_backward(g_ptr, z_ptr, None, a, b, c, offset, mask), mask=mask)


@triton.jit(do_not_specialize=_EXTENTS)
def bn_relu_maxpool(
    z_ptr, y_ptr, argmax_ptr, scale_ptr, shift_ptr, N, H, W, P, Q, K,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y and argmax (N, P, Q, K): the largest relu(z * scale + shift) of each window of z (N, H, W, K), and which.

    As torch's pooling: of equal values the first, of NaNs the last."""
    _, row, channel = tile_of(K, BLOCK_M, BLOCK_N, WIDE)
    image, p, q = pixel_of(row, P, Q)
    channel_inside = channel < K
    mask = (row < widen(N, WIDE) * P * Q)[:, None] & channel_inside[None, :]
    scale = tl.load(scale_ptr + channel, mask=channel_inside, other=0.0)
    shift = tl.load(shift_ptr + channel, mask=channel_inside, other=0.0)
    largest = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    argmax = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for tap in tl.static_range(KERNEL * KERNEL):
        line = p * STRIDE - PADDING + tap // KERNEL
        column = q * STRIDE - PADDING + tap % KERNEL
        inside = mask & ((line >= 0) & (line < H) & (column >= 0) & (column < W))[:, None]
        pixel = (image * H + line) * W + column
        z = tl.load(z_ptr + (pixel * K)[:, None] + channel[None, :], mask=inside, other=0.0)
        value = relu(z.to(tl.float32) * scale[None, :] + shift[None, :]).to(z.dtype).to(tl.float32)
        better = inside & ((value > largest) | (value != value))
        largest = tl.where(better, value, largest)
        argmax = tl.where(better, tap, argmax)
    offset = (row * K)[:, None] + channel[None, :]
    tl.store(y_ptr + offset, largest.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(argmax_ptr + offset, argmax.to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=_EXTENTS)
def bn_relu_maxpool_backward(
    g_ptr, argmax_ptr, z_ptr, scale_ptr, shift_ptr, mean_ptr, y_ptr, sums_ptr, N, H, W, P, Q, K,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y (N, H, W, K): what each pixel of z gets of g (N, P, Q, K), where not rectified; its sums as `bn_act_backward`.

    A pixel gathers from the windows that cover it, in a fixed order, so nothing is added atomically."""
    REACH: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    tile, row, channel = tile_of(K, BLOCK_M, BLOCK_N, WIDE)
    image, line, column = pixel_of(row, H, W)
    channel_inside = channel < K
    mask = (row < widen(N, WIDE) * H * W)[:, None] & channel_inside[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for window in tl.static_range(REACH * REACH):
        p = (line + PADDING) // STRIDE - window // REACH
        q = (column + PADDING) // STRIDE - window % REACH
        r = line + PADDING - p * STRIDE
        s = column + PADDING - q * STRIDE
        covered = (p >= 0) & (p < P) & (q >= 0) & (q < Q) & (r < KERNEL) & (s < KERNEL)
        offset = (((image * P + p) * Q + q) * K)[:, None] + channel[None, :]
        inside = mask & covered[:, None]
        chosen = tl.load(argmax_ptr + offset, mask=inside, other=255).to(tl.int32) == (r * KERNEL + s)[:, None]
        g = tl.load(g_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside & chosen, g, 0.0)
    offset = (row * K)[:, None] + channel[None, :]
    z = tl.load(z_ptr + offset, mask=mask, other=0.0)
    scale = vector(scale_ptr, channel, channel_inside)
    shift = vector(shift_ptr, channel, channel_inside)
    total = unless_rectified_by(total, z, scale, shift)
    g = tl.where(mask, total, 0.0).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + offset, g, mask=mask)
    store_sums(sums_ptr, tile, g, z, mean_ptr, channel, K)


@triton.jit(do_not_specialize=["TILES"])
def bn_finalize(
    partials_ptr, bn_weight_ptr, bn_bias_ptr, y_ptr, var_ptr, invstd_ptr, scale_ptr, shift_ptr, eps, TILES, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y: the mean of all pixels, from their partials (TILES, 3, K); then what batch norm makes of it.

    Twice over the partials, first for the mean and then for the deviations from it, so that nothing cancels."""
    row = tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channel < K
    count = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(TILES, BLOCK_M)):
        tile = step * BLOCK_M + row
        mask = (tile < TILES)[:, None] & inside[None, :]
        at = partials_ptr + (tile.to(tl.int64) * 3 * K)[:, None] + channel[None, :]
        pixels = tl.load(at, mask=mask, other=0.0)
        count += pixels
        total += pixels * tl.load(at + K, mask=mask, other=0.0)
    pixels = tl.maximum(tl.sum(count, axis=0), 1.0)
    mean = tl.sum(total, axis=0) / pixels
    m2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(TILES, BLOCK_M)):
        tile = step * BLOCK_M + row
        mask = (tile < TILES)[:, None] & inside[None, :]
        at = partials_ptr + (tile.to(tl.int64) * 3 * K)[:, None] + channel[None, :]
        delta = tl.load(at + K, mask=mask, other=0.0) - mean[None, :]
        m2 += tl.load(at + 2 * K, mask=mask, other=0.0) + tl.load(at, mask=mask, other=0.0) * delta * delta
    var = tl.sum(m2, axis=0) / pixels
    invstd = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    scale = invstd
    if bn_weight_ptr is not None:
        scale = tl.load(bn_weight_ptr + channel, mask=inside, other=0.0).to(tl.float32) * invstd
    shift = -mean * scale
    if bn_bias_ptr is not None:
        shift += tl.load(bn_bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + channel, mean, mask=inside)
    tl.store(var_ptr + channel, var, mask=inside)
    tl.store(invstd_ptr + channel, invstd, mask=inside)
    tl.store(scale_ptr + channel, scale, mask=inside)
    tl.store(shift_ptr + channel, shift, mask=inside)
