"""Implicit-GEMM convolution over NHWC: gemm_m = N*P*Q pixels, gemm_n = K filters, gemm_k = R*S*C products.

One kernel a way of loading: pointers where C is a multiple of the K-step, runs of elements where it is not (the stem's
three channels), tensor descriptors (TMA) on sm_90 and newer.  Each reads load, compute, finish.  The product is
filters x pixels (see common.py), which also leaves a box of pixels in shared memory where a descriptor put it: only the
right operand of a dot may be reshaped there.
"""

import triton
import triton.language as tl

from .common import finish_tile, grouped_tile, pixel_of, widen

# H, W and the like come in as they are: specialising on their divisibility would compile more kernels, none faster.
_EXTENTS = ["N", "H", "W", "P", "Q", "RES_H", "RES_W"]


@triton.jit
def inside_map(line, column, H, W):
    return (line >= 0) & (line < H) & (column >= 0) & (column < W)


@triton.jit(do_not_specialize=_EXTENTS)
def conv_pointer(
    x_ptr, w_ptr, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
    N, H, W, P, Q, RES_H, RES_W,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    RES_C: tl.constexpr, RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, C), w (K, R, S, C), y and residual (N, P, Q, K); C is a multiple of BLOCK_K."""
    TILES_N: tl.constexpr = (K + BLOCK_N - 1) // BLOCK_N
    C_STEPS: tl.constexpr = C // BLOCK_K
    PADDED: tl.constexpr = PAD_H > 0 or PAD_W > 0
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    tile_m, tile_n = grouped_tile(pid, tl.cdiv(rows, BLOCK_M), TILES_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image, p, q = pixel_of(row, P, Q)
    row_inside = row < rows
    line = p * STRIDE_H - PAD_H
    column = q * STRIDE_W - PAD_W
    step_k = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + ((image * H + line) * W + column) * C
    w_rows = w_ptr + channel * (R * S * C)
    w_inside = (channel < K)[:, None]

    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(R * S * C_STEPS):
        tap = step // C_STEPS
        r = tap // S
        s = tap % S
        x_inside = row_inside
        if PADDED:
            x_inside = x_inside & inside_map(line + r, column + s, H, W)
        x_offset = (r * W + s) * C + (step % C_STEPS) * BLOCK_K
        filters = tl.load(w_rows[:, None] + (step * BLOCK_K + step_k)[None, :], mask=w_inside, other=0.0)
        pixels = tl.load(x_rows[None, :] + (x_offset + step_k)[:, None], mask=x_inside[None, :], other=0.0)
        acc = tl.dot(filters, pixels, acc, input_precision=PRECISION)

    finish_tile(
        acc, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
        row, image, p, q, row_inside, channel, RES_H, RES_W, K, RES_C, RES_STRIDE, OPTION_A, RELU,
    )  # fmt: skip


@triton.jit(do_not_specialize=_EXTENTS)
def conv_runs(
    x_ptr, w_ptr, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
    N, H, W, P, Q, RES_H, RES_W,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    RES_C: tl.constexpr, RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `conv_pointer` for any C.  In NHWC the S taps of a filter row are one run of S * C elements: gemm_k is R runs,
    each padded to whole steps, and a tap is off the map where its element is off the line."""
    TILES_N: tl.constexpr = (K + BLOCK_N - 1) // BLOCK_N
    RUN: tl.constexpr = S * C
    RUN_STEPS: tl.constexpr = (RUN + BLOCK_K - 1) // BLOCK_K
    pid = widen(tl.program_id(0), WIDE)
    W = widen(W, WIDE)
    rows = widen(N, WIDE) * P * Q
    tile_m, tile_n = grouped_tile(pid, tl.cdiv(rows, BLOCK_M), TILES_N, GROUP_M)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image, p, q = pixel_of(row, P, Q)
    row_inside = row < rows
    line = p * STRIDE_H - PAD_H
    start = (q * STRIDE_W - PAD_W) * C
    x_rows = x_ptr + ((image * H + line) * W * C + start)
    w_rows = w_ptr + channel * (R * RUN)
    w_inside = (channel < K)[:, None]

    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(R * RUN_STEPS):
        r = step // RUN_STEPS
        element = (step % RUN_STEPS) * BLOCK_K + tl.arange(0, BLOCK_K)
        in_run = element < RUN
        at = start[None, :] + element[:, None]
        line_inside = row_inside & (line + r >= 0) & (line + r < H)
        x_inside = (at >= 0) & (at < W * C) & line_inside[None, :] & in_run[:, None]
        filters = tl.load(w_rows[:, None] + (r * RUN + element)[None, :], mask=w_inside & in_run[None, :], other=0.0)
        pixels = tl.load(x_rows[None, :] + (r * W * C + element)[:, None], mask=x_inside, other=0.0)
        acc = tl.dot(filters, pixels, acc, input_precision=PRECISION)

    finish_tile(
        acc, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
        row, image, p, q, row_inside, channel, RES_H, RES_W, K, RES_C, RES_STRIDE, OPTION_A, RELU,
    )  # fmt: skip


@triton.jit(do_not_specialize=_EXTENTS)
def conv_tma(
    x_desc, w_desc, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
    N, P, Q, RES_H, RES_W,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    RES_C: tl.constexpr, RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
    TILE_N: tl.constexpr, TILE_P: tl.constexpr, TILE_Q: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Stride 1 (or a strided view): the pixels of a tile are a box of TILE_N images x TILE_P lines x TILE_Q columns.

    x_desc: (N, H, W, C) in boxes [TILE_N, TILE_P, TILE_Q, BLOCK_K], filled with zeros outside the map, which is the
    padding.  w_desc: (K, R*S*C) in boxes [BLOCK_N, BLOCK_K].
    """
    TILES_N: tl.constexpr = (K + BLOCK_N - 1) // BLOCK_N
    BLOCK_M: tl.constexpr = TILE_N * TILE_P * TILE_Q
    C_STEPS: tl.constexpr = C // BLOCK_K
    pid = tl.program_id(0)
    boxes_p = tl.cdiv(P, TILE_P)
    boxes_q = tl.cdiv(Q, TILE_Q)
    tile_m, tile_n = grouped_tile(pid, tl.cdiv(N, TILE_N) * boxes_p * boxes_q, TILES_N, GROUP_M)
    box_n, box_p, box_q = pixel_of(tile_m, boxes_p, boxes_q)
    image0 = box_n * TILE_N
    line0 = box_p * TILE_P
    column0 = box_q * TILE_Q
    channel0 = tile_n * BLOCK_N

    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(R * S * C_STEPS):
        tap = step // C_STEPS
        line = line0 + tap // S - PAD_H
        column = column0 + tap % S - PAD_W
        filters = w_desc.load([channel0, step * BLOCK_K])
        pixels = x_desc.load([image0, line, column, (step % C_STEPS) * BLOCK_K]).reshape(BLOCK_M, BLOCK_K)
        acc = tl.dot(filters, pixels.T, acc, input_precision=PRECISION)

    image, p, q = pixel_of(tl.arange(0, BLOCK_M), TILE_P, TILE_Q)
    image += image0
    p += line0
    q += column0
    row_inside = (image < N) & (p < P) & (q < Q)
    if WIDE:
        image = image.to(tl.int64)
    row = (image * P + p) * Q + q
    channel = channel0 + tl.arange(0, BLOCK_N)
    finish_tile(
        acc, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
        row, image, p, q, row_inside, channel, RES_H, RES_W, K, RES_C, RES_STRIDE, OPTION_A, RELU,
    )  # fmt: skip
