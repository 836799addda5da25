"""The forward GEMMs of training: a convolution whose input is normalized as it is loaded, over NHWC.

gemm_m = N*P*Q pixels are the rows, gemm_n = K filters the columns (see common.py), gemm_k = R*S*C products.
"""

import triton
import triton.language as tl

from ..common import grouped_tile, pixel_of, widen
from .common import normalized, store_activated, store_statistics, vector

_EXTENTS = ["N", "H", "W", "P", "Q", "RES_H", "RES_W"]


@triton.jit
def accumulate(
    x_ptr, w_ptr, in_scale_ptr, in_shift_ptr, image, p, q, row_inside, channel, H, W,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The (pixels, filters) tile of conv(relu(x * in_scale + in_shift), w) for x (N, H, W, C) and w (K, R, S, C).

    Where C is a multiple of BLOCK_K a step is within one tap; elsewhere each of its products has its own."""
    GATHER: tl.constexpr = C % BLOCK_K != 0
    PADDED: tl.constexpr = PAD_H > 0 or PAD_W > 0
    GEMM_K: tl.constexpr = R * S * C
    line = p * STRIDE_H - PAD_H
    column = q * STRIDE_W - PAD_W
    x_rows = x_ptr + ((image * H + line) * W + column) * C
    w_rows = w_ptr + channel * GEMM_K
    w_inside = (channel < K)[None, :]
    step_k = tl.arange(0, BLOCK_K)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range((GEMM_K + BLOCK_K - 1) // BLOCK_K):
        product = step * BLOCK_K + step_k
        if GATHER:
            c = product % C
            r = product // C // S
            s = product // C % S
            product_inside = product < GEMM_K
            lines = line[:, None] + r[None, :]
            columns = column[:, None] + s[None, :]
            inside = row_inside[:, None] & product_inside[None, :]
            inside = inside & (lines >= 0) & (lines < H) & (columns >= 0) & (columns < W)
            pixels = tl.load(x_rows[:, None] + ((r * W + s) * C + c)[None, :], mask=inside, other=0.0)
            filters = tl.load(w_rows[None, :] + product[:, None], mask=w_inside & product_inside[:, None], other=0.0)
        else:
            C_STEPS: tl.constexpr = C // BLOCK_K
            r = step // C_STEPS // S
            s = step // C_STEPS % S
            c = step % C_STEPS * BLOCK_K + step_k
            product_inside = c < C
            tap_inside = row_inside
            if PADDED:
                tap_inside = tap_inside & (line + r >= 0) & (line + r < H) & (column + s >= 0) & (column + s < W)
            inside = tap_inside[:, None]
            pixels = tl.load(x_rows[:, None] + ((r * W + s) * C + c)[None, :], mask=inside, other=0.0)
            filters = tl.load(w_rows[None, :] + product[:, None], mask=w_inside, other=0.0)
        in_scale = vector(in_scale_ptr, c, product_inside)
        in_shift = vector(in_shift_ptr, c, product_inside)
        pixels = normalized(pixels, in_scale, in_shift, inside)
        acc = tl.dot(pixels, filters, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=_EXTENTS)
def conv_stats(
    x_ptr, w_ptr, y_ptr, partials_ptr, in_scale_ptr, in_shift_ptr, N, H, W, P, Q,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (N, P, Q, K) = conv(prologue(x), w), and (count, mean, M2) of each BLOCK_M pixels of it, as rounded."""
    TILES_N: tl.constexpr = (K + BLOCK_N - 1) // BLOCK_N
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    tile_m, tile_n = grouped_tile(pid, tl.cdiv(rows, BLOCK_M), TILES_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside = row < rows
    image, p, q = pixel_of(row, P, Q)
    acc = accumulate(
        x_ptr, w_ptr, in_scale_ptr, in_shift_ptr, image, p, q, row_inside, channel, H, W,
        C, K, R, S, STRIDE_H, STRIDE_W, PAD_H, PAD_W, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    z = acc.to(y_ptr.dtype.element_ty)
    mask = row_inside[:, None] & (channel < K)[None, :]
    tl.store(y_ptr + (row * K)[:, None] + channel[None, :], z, mask=mask)
    store_statistics(partials_ptr, tile_m, z, row_inside, channel, K)


@triton.jit(do_not_specialize=_EXTENTS)
def conv_bn_add_act(
    x_ptr, w_ptr, y_ptr, in_scale_ptr, in_shift_ptr, scale_ptr, shift_ptr, residual_ptr, N, H, W, P, Q, RES_H, RES_W,
    C: tl.constexpr, K: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    RES_C: tl.constexpr, RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (N, P, Q, K) = act(scale * (w prologue(x)) + shift + shortcut(residual)) for a 1x1 filter w (K, C)."""
    TILES_N: tl.constexpr = (K + BLOCK_N - 1) // BLOCK_N
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    tile_m, tile_n = grouped_tile(pid, tl.cdiv(rows, BLOCK_M), TILES_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside = row < rows
    image, p, q = pixel_of(row, P, Q)
    acc = accumulate(
        x_ptr, w_ptr, in_scale_ptr, in_shift_ptr, image, p, q, row_inside, channel, H, W,
        C, K, 1, 1, STRIDE_H, STRIDE_W, 0, 0, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION,
    )  # fmt: skip
    store_activated(
        acc, y_ptr, scale_ptr, shift_ptr, residual_ptr, row, image, p, q, row_inside, channel,
        RES_H, RES_W, K, RES_C, RES_STRIDE, OPTION_A, RELU,
    )  # fmt: skip
