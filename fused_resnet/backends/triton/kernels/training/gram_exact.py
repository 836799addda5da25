"""The Gram matrix of a 1x1 convolution's input in float64, for filters whose variance cancels."""

import triton
import triton.language as tl

from ..common import widen
from .common import centered, vector
from .wgrad import _EXTENTS, sampled, split_tile


@triton.jit(do_not_specialize=_EXTENTS)
def conv_gram_exact(
    flag_ptr, z_ptr, in_scale_ptr, in_shift_ptr, center_ptr, y_ptr, N, H, W, P, Q, STEPS,
    C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """y (splits, C + 1, C) float64: the rows of a^T a and behind them the sums of a, as `conv_gram` has them; nothing
    where the flag (1,) is 0.

    It is rare and tl.dot has no float64 on every part: products of 16 or 24 bits are exact, and are added as a tile of
    outer products."""
    if tl.load(flag_ptr) != 0:
        TILES: tl.constexpr = (C + BLOCK - 1) // BLOCK
        pid = widen(tl.program_id(0), WIDE)
        W = widen(W, WIDE)
        rows = widen(N, WIDE) * P * Q
        split, tile_m, tile_n = split_tile(pid, TILES, TILES)
        left = tile_m * BLOCK + tl.arange(0, BLOCK)
        right = tile_n * BLOCK + tl.arange(0, BLOCK)
        left_scale = vector(in_scale_ptr, left, left < C)
        left_shift = vector(in_shift_ptr, left, left < C)
        left_center = vector(center_ptr, left, left < C)
        right_scale = vector(in_scale_ptr, right, right < C)
        right_shift = vector(in_shift_ptr, right, right < C)
        right_center = vector(center_ptr, right, right < C)

        acc = tl.zeros((BLOCK, BLOCK), tl.float64)
        total = tl.zeros((BLOCK,), tl.float64)
        for step in range(STEPS):
            row = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)
            a, inside = sampled(z_ptr, left_scale, left_shift, row, rows, left, H, W, P, Q, C, STRIDE_H, STRIDE_W)
            a = centered(a, left_center, inside).to(tl.float64)
            b, inside = sampled(z_ptr, right_scale, right_shift, row, rows, right, H, W, P, Q, C, STRIDE_H, STRIDE_W)
            b = centered(b, right_center, inside).to(tl.float64)
            acc += tl.sum(a[:, :, None] * b[:, None, :], axis=0)
            total += tl.sum(a, axis=0)

        slice_ptr = y_ptr + split.to(tl.int64) * ((C + 1) * C)
        mask = (left < C)[:, None] & (right < C)[None, :]
        tl.store(slice_ptr + (left * C)[:, None] + right[None, :], acc, mask=mask)
        if tile_n == 0:
            tl.store(slice_ptr + C * C + left, total, mask=left < C)
