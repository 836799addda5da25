"""Both gradients of a 1x1 convolution from one read of every map.

The products dz W (for the map below) and dz^T x (for the weight) share the tile dz of all K channels of some pixels,
which is loaded, put through its prologue and kept in shared memory for both.  As in `wgrad.py` the pixels are
split between programs and each leaves a slice of float32 partials; as in `dgrad.py` each tile of pixels is
finished and stored.
"""

import triton
import triton.language as tl

from ..common import pixel_of, widen
from .common import bn_backward, centered, normalized, plus_skip, unless_rectified, vector
from .wgrad import split_tile

_EXTENTS = ["N", "H", "W", "P", "Q", "STEPS"]


@triton.jit(do_not_specialize=_EXTENTS)
def conv_backward_1x1(
    g_ptr, z_ptr, out_ptr, a_ptr, b_ptr, c_ptr, w_ptr, x_ptr, in_scale_ptr, in_shift_ptr, center_ptr,
    skip_ptr, skip_out_ptr, y_ptr, slices_ptr, total_ptr, N, H, W, P, Q, STEPS,
    C: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, SKIP_STRIDE: tl.constexpr, RECTIFIED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LOADS: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (N, P, Q, C) = dz @ w for dz of g, z, out (N, P, Q, K) and w (K, C), then the skip's gradient and, where
    RECTIFIED, the mask x > 0; slices (splits, K, C): dz^T prologue(x), less the center; total (splits, K): sums of dz.

    x (N, H, W, C) is read at every STRIDE-th pixel, the skip added to every SKIP_STRIDE-th one.  BLOCK_K covers K; a
    split is STEPS * BLOCK_M pixels; LOADS tiles are on their way at a time."""
    TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    split, _, tile_n = split_tile(pid, 1, TILES_N)
    k = tl.arange(0, BLOCK_K)
    k_inside = k < K
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_inside = channel < C
    w_inside = channel_inside[:, None] & k_inside[None, :]
    # transposed, as both products are: their rows are channels, of which there are enough for wgmma's 64
    filters = tl.load(w_ptr + channel[:, None] + (k * C)[None, :], mask=w_inside, other=0.0)
    a = vector(a_ptr, k, k_inside)
    b = vector(b_ptr, k, k_inside)
    c = vector(c_ptr, k, k_inside)
    in_scale = vector(in_scale_ptr, channel, channel_inside)
    in_shift = vector(in_shift_ptr, channel, channel_inside)
    center = vector(center_ptr, channel, channel_inside)

    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    total = tl.zeros((BLOCK_K,), tl.float32)
    tl.assume(STEPS > 0)
    for step in tl.range(STEPS, num_stages=LOADS):
        row = (split * STEPS + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        row_inside = row < rows
        image, p, q = pixel_of(row, P, Q)
        inside = row_inside[:, None] & k_inside[None, :]
        offset = (row * K)[:, None] + k[None, :]
        dz = bn_backward(g_ptr, z_ptr, out_ptr, a, b, c, offset, inside)

        mask = row_inside[:, None] & channel_inside[None, :]
        pixel = row
        if STRIDE > 1:
            pixel = (image * H + p * STRIDE) * W + q * STRIDE
        x = tl.load(x_ptr + (pixel * C)[:, None] + channel[None, :], mask=mask, other=0.0)
        value = centered(normalized(x, in_scale, in_shift, mask), center, mask)
        acc = tl.dot(tl.trans(value), dz, acc, input_precision=PRECISION)
        if total_ptr is not None:
            total += tl.sum(dz.to(tl.float32), axis=0)

        dx = tl.trans(tl.dot(filters, tl.trans(dz), input_precision=PRECISION))
        if skip_ptr is not None:
            dx = plus_skip(
                dx, skip_ptr, skip_out_ptr, row, image, p, q, row_inside, channel, channel_inside, P, Q, C, SKIP_STRIDE
            )  # fmt: skip
        if RECTIFIED:
            dx = unless_rectified(dx, x)
        tl.store(y_ptr + (row * C)[:, None] + channel[None, :], dx.to(y_ptr.dtype.element_ty), mask=mask)

    slice_ptr = slices_ptr + split.to(tl.int64) * (K * C)
    tl.store(slice_ptr + channel[:, None] + (k * C)[None, :], acc, mask=w_inside)
    if total_ptr is not None:
        if tile_n == 0:
            tl.store(total_ptr + split * K + k, total, mask=k_inside)
