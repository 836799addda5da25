"""The gradients with respect to a feature map, as GEMMs.

gemm_m = input pixels are the rows, gemm_n = channels the columns, gemm_k = taps x filters.  A stride splits the input
pixels into phases, stride_h x stride_w of them, each of which sees its own taps: every product counts, and no zeros are
inserted.
"""

import triton
import triton.language as tl

from ..common import grouped_tile, pixel_of, widen
from .common import (
    bn_backward,
    centered,
    normalized,
    plus_skip,
    store_sums,
    unless_rectified,
    unless_rectified_by,
    vector,
)

_EXTENTS = ["N", "H", "W", "P", "Q", "ROWS"]


@triton.jit
def finish(
    acc, y_ptr, sums_ptr, below_z_ptr, below_scale_ptr, below_shift_ptr, below_mean_ptr, below_out_ptr,
    tile_m, channel, channel_inside, offset, mask, C: tl.constexpr,
):  # fmt: skip
    """A tile of dx, masked by the ReLU below, and its sums, on their way out."""
    if below_out_ptr is not None:
        acc = unless_rectified(acc, tl.load(below_out_ptr + offset, mask=mask, other=1.0))
    if below_z_ptr is not None:
        z = tl.load(below_z_ptr + offset, mask=mask, other=0.0)
        if below_scale_ptr is not None:
            scale = vector(below_scale_ptr, channel, channel_inside)
            acc = unless_rectified_by(acc, z, scale, vector(below_shift_ptr, channel, channel_inside))
        dx = tl.where(mask, acc, 0.0).to(y_ptr.dtype.element_ty)
        store_sums(sums_ptr, tile_m, dx, z, below_mean_ptr, channel, C)
        tl.store(y_ptr + offset, dx, mask=mask)
    else:
        tl.store(y_ptr + offset, acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_EXTENTS)
def conv_dgrad(
    g_ptr, z_ptr, out_ptr, a_ptr, b_ptr, c_ptr, w_ptr, y_ptr, sums_ptr,
    below_z_ptr, below_scale_ptr, below_shift_ptr, below_mean_ptr, below_out_ptr, skip_ptr, skip_out_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, SKIP_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (N, H, W, C) = conv_transpose(dz, w) for dz of g, z, out (N, P, Q, K) and w (K, R, S, C); then the skip's
    gradient, the mask of the ReLU below (below_out > 0, or below_z * below_scale + below_shift > 0), and the sums of
    y and y * (below_z - below_mean) a tile."""
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    K_STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    pid = widen(tl.program_id(0), WIDE)
    lines = tl.cdiv(H, STRIDE_H)
    columns = tl.cdiv(W, STRIDE_W)
    rows = widen(N, WIDE) * lines * columns
    phase_tiles = tl.cdiv(rows, BLOCK_M)
    tile_m, tile_n = grouped_tile(pid, phase_tiles * STRIDE_H * STRIDE_W, TILES_N, GROUP_M)
    phase = (tile_m // phase_tiles).to(tl.int32)
    row = tile_m % phase_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    image, i, j = pixel_of(row, lines, columns)
    line = i * STRIDE_H + phase // STRIDE_W
    column = j * STRIDE_W + phase % STRIDE_W
    row_inside = (row < rows) & (line < H) & (column < W)
    # the taps that see this phase: r0, r0 + STRIDE_H, ... of outputs p0, p0 - 1, ...
    r0 = (phase // STRIDE_W + PAD_H) % STRIDE_H
    s0 = (phase % STRIDE_W + PAD_W) % STRIDE_W
    taps_s = (S - s0 + STRIDE_W - 1) // STRIDE_W
    steps = (R - r0 + STRIDE_H - 1) // STRIDE_H * taps_s * K_STEPS
    p0 = (line + PAD_H - r0) // STRIDE_H
    q0 = (column + PAD_W - s0) // STRIDE_W
    output = (image * P + p0) * Q + q0
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_inside = channel < C
    step_k = tl.arange(0, BLOCK_K)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps):
        up = step // K_STEPS // taps_s
        left = step // K_STEPS % taps_s
        k = step % K_STEPS * BLOCK_K + step_k
        k_inside = k < K
        p = p0 - up
        q = q0 - left
        inside = (row_inside & (p >= 0) & (p < P) & (q >= 0) & (q < Q))[:, None] & k_inside[None, :]
        offset = ((output - up * Q - left) * K)[:, None] + k[None, :]
        a = vector(a_ptr, k, k_inside)
        b = vector(b_ptr, k, k_inside)
        c = vector(c_ptr, k, k_inside)
        dz = bn_backward(g_ptr, z_ptr, out_ptr, a, b, c, offset, inside)
        tap = (r0 + up * STRIDE_H) * S + s0 + left * STRIDE_W
        w_offset = (k * (R * S * C) + tap * C)[:, None] + channel[None, :]
        filters = tl.load(w_ptr + w_offset, mask=k_inside[:, None] & channel_inside[None, :], other=0.0)
        acc = tl.dot(dz, filters, acc, input_precision=PRECISION)

    mask = row_inside[:, None] & channel_inside[None, :]
    pixel = (image * H + line) * W + column
    offset = (pixel * C)[:, None] + channel[None, :]
    if skip_ptr is not None:
        acc = plus_skip(
            acc, skip_ptr, skip_out_ptr, pixel, image, line, column, row_inside, channel, channel_inside, H, W, C,
            SKIP_STRIDE,
        )  # fmt: skip
    finish(
        acc, y_ptr, sums_ptr, below_z_ptr, below_scale_ptr, below_shift_ptr, below_mean_ptr, below_out_ptr,
        tile_m, channel, channel_inside, offset, mask, C,
    )  # fmt: skip


@triton.jit(do_not_specialize=_EXTENTS)
def conv_gram_finish(
    t_ptr, z_ptr, in_scale_ptr, in_shift_ptr, center_ptr, w_ptr, constant_ptr, mean_ptr, y_ptr, sums_ptr,
    ROWS, C: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = t + (prologue(z) - center) @ w + constant, where the prologue did not rectify, and its sums a tile.

    t, z and y are (ROWS, C); w (PARTS, C, C) is the sum of its parts: in half precision leading and trailing bits."""
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    pid = widen(tl.program_id(0), WIDE)
    tile_m, tile_n = grouped_tile(pid, tl.cdiv(widen(ROWS, WIDE), BLOCK_M), TILES_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    row_inside = (row < ROWS)[:, None]
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_inside = channel < C
    step_k = tl.arange(0, BLOCK_K)
    step_w = tl.arange(0, BLOCK_K * PARTS)

    # the constant first: added to the products, it would need registers beside them, t and z
    constant = tl.load(constant_ptr + channel, mask=channel_inside, other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) + constant[None, :]
    for step in range((C + BLOCK_K - 1) // BLOCK_K):
        k = step * BLOCK_K + step_k
        k_inside = k < C
        inside = row_inside & k_inside[None, :]
        a = tl.load(z_ptr + (row * C)[:, None] + k[None, :], mask=inside, other=0.0)
        a = normalized(a, vector(in_scale_ptr, k, k_inside), vector(in_shift_ptr, k, k_inside), inside)
        a = centered(a, vector(center_ptr, k, k_inside), inside)
        # one product a step, since a second one would wait for the first: each channel meets both parts of its row
        if PARTS == 2:
            a = tl.interleave(a, a)
        row_w = step * BLOCK_K + step_w // PARTS
        w_rows = w_ptr + ((step_w % PARTS * C + row_w) * C)[:, None]
        w = tl.load(w_rows + channel[None, :], mask=(row_w < C)[:, None] & channel_inside[None, :], other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)

    mask = row_inside & channel_inside[None, :]
    offset = (row * C)[:, None] + channel[None, :]
    acc += tl.load(t_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + offset, mask=mask, other=0.0)
    if in_scale_ptr is not None:
        scale = vector(in_scale_ptr, channel, channel_inside)
        acc = unless_rectified_by(acc, z, scale, vector(in_shift_ptr, channel, channel_inside))
    g = tl.where(mask, acc, 0.0).to(y_ptr.dtype.element_ty)
    store_sums(sums_ptr, tile_m, g, z, mean_ptr, channel, C)
    tl.store(y_ptr + offset, g, mask=mask)
