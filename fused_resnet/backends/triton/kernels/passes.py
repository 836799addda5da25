"""What is left to do when the convolution was not ours: one read and one write of its output.

Channels are arguments here, specialised on being multiples of 16, so that few kernels serve all layers.
"""

import triton
import triton.language as tl

from .common import finish_tile, pixel_of, widen

_EXTENTS = ["N", "P", "Q", "RES_H", "RES_W", "H", "W"]


@triton.jit(do_not_specialize=_EXTENTS)
def scale_shift_act(
    z_ptr, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
    N, P, Q, RES_H, RES_W, K, RES_C, RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y = act(z * scale + shift + shortcut) for z and y (N, P, Q, K), which may be the same buffer."""
    tiles_n = tl.cdiv(K, BLOCK_N)
    pid = widen(tl.program_id(0), WIDE)
    row = pid // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside = row < widen(N, WIDE) * P * Q
    mask = row_inside[None, :] & (channel < K)[:, None]
    z = tl.load(z_ptr + (row * K)[None, :] + channel[:, None], mask=mask, other=0.0).to(tl.float32)
    image, p, q = pixel_of(row, P, Q)
    finish_tile(
        z, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
        row, image, p, q, row_inside, channel, RES_H, RES_W, K, RES_C, RES_STRIDE, OPTION_A, RELU,
    )  # fmt: skip


@triton.jit(do_not_specialize=_EXTENTS)
def option_a_shortcut(
    x_ptr, y_ptr, N, H, W, P, Q, C, K, STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y (N, P, Q, K) = x (N, H, W, C) at every STRIDE-th pixel, between (K - C) // 2 zero channels and the rest."""
    tiles_n = tl.cdiv(K, BLOCK_N)
    pid = widen(tl.program_id(0), WIDE)
    row = pid // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image, p, q = pixel_of(row, P, Q)
    mask = (row < widen(N, WIDE) * P * Q)[:, None] & (channel < K)[None, :]
    pixel = (image * H + p * STRIDE) * W + q * STRIDE
    source = channel - (K - C) // 2
    x_inside = mask & ((source >= 0) & (source < C))[None, :]
    value = tl.load(x_ptr + (pixel * C)[:, None] + source[None, :], mask=x_inside, other=0.0)
    tl.store(y_ptr + (row * K)[:, None] + channel[None, :], value, mask=mask)
