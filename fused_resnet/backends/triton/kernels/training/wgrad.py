"""The products summed over all pixels: weight gradients and Gram matrices, with gemm_k = the pixels.

There are few output tiles and many pixels, so the pixels are split between programs.  Each leaves float32 partials in
its own slice, which are summed in a fixed order afterwards: nothing is added atomically.
"""

import triton
import triton.language as tl

from ..common import pixel_of, widen
from .common import bn_backward, centered, normalized, vector

_EXTENTS = ["N", "H", "W", "P", "Q", "STEPS"]


@triton.jit
def split_tile(pid, TILES_M: tl.constexpr, TILES_N: tl.constexpr):
    """(split, tile_m, tile_n): the tiles of one split read the same pixels, and are neighbours."""
    tile = pid % (TILES_M * TILES_N)
    return pid // (TILES_M * TILES_N), tile // TILES_N, tile % TILES_N


@triton.jit(do_not_specialize=_EXTENTS)
def conv_wgrad(
    g_ptr, z_ptr, out_ptr, a_ptr, b_ptr, c_ptr, x_ptr, in_scale_ptr, in_shift_ptr, center_ptr, y_ptr, total_ptr,
    N, H, W, P, Q, STEPS,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (splits, K, R*S*C): correlation of dz of g, z, out (N, P, Q, K) with prologue(x) (N, H, W, C), less the center;
    total (splits, K): the sums of dz.  A split is STEPS * BLOCK_K pixels."""
    COLUMNS: tl.constexpr = R * S * C
    TILES_M: tl.constexpr = (K + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    ONE_TAP: tl.constexpr = C % BLOCK_N == 0
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    split, tile_m, tile_n = split_tile(pid, TILES_M, TILES_N)
    k = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k_inside = k < K
    product = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    product_inside = product < COLUMNS
    tap = product // C
    if ONE_TAP:
        tap = tl.zeros((1,), tl.int32) + (tile_n * BLOCK_N // C).to(tl.int32)
    r = tap // S
    s = tap % S
    c = product - tap * C
    x_columns = (r * W + s) * C + c
    slope = vector(a_ptr, k, k_inside)
    slope_z = vector(b_ptr, k, k_inside)
    constant = vector(c_ptr, k, k_inside)
    in_scale = vector(in_scale_ptr, c, product_inside)
    in_shift = vector(in_shift_ptr, c, product_inside)
    center = vector(center_ptr, c, product_inside)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    tl.assume(STEPS > 0)
    for step in range(STEPS):
        row = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        row_inside = row < rows
        image, p, q = pixel_of(row, P, Q)
        line = p * STRIDE_H - PAD_H
        column = q * STRIDE_W - PAD_W
        offset = (row * K)[:, None] + k[None, :]
        inside = row_inside[:, None] & k_inside[None, :]
        dz = bn_backward(g_ptr, z_ptr, out_ptr, slope, slope_z, constant, offset, inside)
        lines = line[:, None] + r[None, :]
        columns = column[:, None] + s[None, :]
        x_inside = row_inside[:, None] & (lines >= 0) & (lines < H) & (columns >= 0) & (columns < W)
        if not ONE_TAP:
            x_inside = x_inside & product_inside[None, :]
        x_rows = x_ptr + ((image * H + line) * W + column) * C
        x = tl.load(x_rows[:, None] + x_columns[None, :], mask=x_inside, other=0.0)
        x = centered(normalized(x, in_scale, in_shift, x_inside), center, x_inside)
        acc = tl.dot(tl.trans(dz), x, acc, input_precision=PRECISION)
        if total_ptr is not None:
            total += tl.sum(dz.to(tl.float32), axis=0)

    slice_ptr = y_ptr + split.to(tl.int64) * (K * COLUMNS)
    mask = k_inside[:, None] & product_inside[None, :]
    tl.store(slice_ptr + (k * COLUMNS)[:, None] + product[None, :], acc, mask=mask)
    if total_ptr is not None:
        if tile_n == 0:
            tl.store(total_ptr + split * K + k, total, mask=k_inside)


@triton.jit
def sampled(
    z_ptr, in_scale, in_shift, row, rows, channel, H, W, P, Q,
    C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
):  # fmt: skip
    """(prologue(z), inside) of the given output pixels and channels of a strided 1x1 convolution's input."""
    image, p, q = pixel_of(row, P, Q)
    z_rows = z_ptr + ((image * H + p * STRIDE_H) * W + q * STRIDE_W) * C
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    z = tl.load(z_rows[:, None] + channel[None, :], mask=inside, other=0.0)
    return normalized(z, in_scale, in_shift, inside), inside


@triton.jit
def center_of(
    z_ptr, in_scale, in_shift, rows, channel, H, W, P, Q,
    C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
):  # fmt: skip
    """The mean of each channel over the first 128 pixels, as z's dtype has it; in 16 bits zero where it is not beyond
    four deviations: there the raw value is exact, and the rounded difference would not be."""
    FIRST: tl.constexpr = 128
    BEYOND: tl.constexpr = 0.0 if z_ptr.dtype.element_ty == tl.float32 else 4.0
    row = tl.arange(0, FIRST)
    a, inside = sampled(z_ptr, in_scale, in_shift, row, rows, channel, H, W, P, Q, C, STRIDE_H, STRIDE_W)
    count = tl.sum((row < rows).to(tl.float32), axis=0)
    mean = tl.sum(a.to(tl.float32), axis=0) / count
    deviation = tl.where(inside, a.to(tl.float32) - mean[None, :], 0.0)
    std = tl.sqrt_rn(tl.sum(deviation * deviation, axis=0) / count)
    return tl.where(tl.abs(mean) > BEYOND * std, mean, 0.0).to(z_ptr.dtype.element_ty).to(tl.float32)


@triton.jit(do_not_specialize=_EXTENTS)
def conv_gram(
    z_ptr, in_scale_ptr, in_shift_ptr, center_ptr, y_ptr, N, H, W, P, Q, STEPS,
    C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (splits, C + 1, C): the rows of a^T a of a = prologue(z) - center at every STRIDE-th pixel of z (N, H, W, C),
    P x Q an image, and behind them the sums of a.  A split is STEPS * BLOCK_K pixels.

    The products of each step are summed by themselves, and then added to those before: an accumulator that ran over all
    pixels would err in proportion to their number (tensor cores truncate).

    center (C,) is written: every program finds the same one from the first 128 pixels, and needs no launch before.
    Both operands are transformed, so that the right one passes through shared memory behind a wait for the products
    that read it last: wgmma of two steps do not overlap here."""
    TILES_M: tl.constexpr = (C + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    split, tile_m, tile_n = split_tile(pid, TILES_M, TILES_N)
    left = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    left_scale = vector(in_scale_ptr, left, left < C)
    left_shift = vector(in_shift_ptr, left, left < C)
    left_center = center_of(z_ptr, left_scale, left_shift, rows, left, H, W, P, Q, C, STRIDE_H, STRIDE_W)
    right = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    right_scale = vector(in_scale_ptr, right, right < C)
    right_shift = vector(in_shift_ptr, right, right < C)
    right_center = center_of(z_ptr, right_scale, right_shift, rows, right, H, W, P, Q, C, STRIDE_H, STRIDE_W)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float64)
    tl.assume(STEPS > 0)
    for step in range(STEPS):
        row = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        a, inside = sampled(z_ptr, left_scale, left_shift, row, rows, left, H, W, P, Q, C, STRIDE_H, STRIDE_W)
        a = centered(a, left_center, inside)
        b, inside = sampled(z_ptr, right_scale, right_shift, row, rows, right, H, W, P, Q, C, STRIDE_H, STRIDE_W)
        b = centered(b, right_center, inside)
        acc += tl.dot(tl.trans(a), b, input_precision=PRECISION)
        total += tl.sum(a.to(tl.float32), axis=0).to(tl.float64)

    slice_ptr = y_ptr + split.to(tl.int64) * ((C + 1) * C)
    left_inside = left < C
    mask = left_inside[:, None] & (right < C)[None, :]
    tl.store(slice_ptr + (left * C)[:, None] + right[None, :], acc, mask=mask)
    if tile_n == 0:
        tl.store(slice_ptr + C * C + left, total, mask=left_inside)
        if split == 0:
            tl.store(center_ptr + left, left_center, mask=left_inside)
