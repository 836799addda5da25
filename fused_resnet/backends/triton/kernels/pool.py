"""The two poolings of a ResNet, over NHWC."""

import triton
import triton.language as tl

from .common import pixel_of, widen

_EXTENTS = ["N", "H", "W", "P", "Q", "PIXELS"]


@triton.jit(do_not_specialize=_EXTENTS)
def max_pool(
    x_ptr, y_ptr, N, H, W, P, Q, C, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y (N, P, Q, C): the largest of each KERNEL x KERNEL window of x (N, H, W, C), or NaN where it holds one."""
    tiles_n = tl.cdiv(C, BLOCK_N)
    pid = widen(tl.program_id(0), WIDE)
    row = pid // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    image, p, q = pixel_of(row, P, Q)
    mask = (row < widen(N, WIDE) * P * Q)[:, None] & (channel < C)[None, :]
    largest = tl.full((BLOCK_M, BLOCK_N), float("-inf"), tl.float32)
    for tap in tl.static_range(KERNEL * KERNEL):
        line = p * STRIDE - PADDING + tap // KERNEL
        column = q * STRIDE - PADDING + tap % KERNEL
        inside = mask & ((line >= 0) & (line < H) & (column >= 0) & (column < W))[:, None]
        pixel = (image * H + line) * W + column
        value = tl.load(x_ptr + (pixel * C)[:, None] + channel[None, :], mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, value.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + (row * C)[:, None] + channel[None, :], largest.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_EXTENTS)
def global_avg_pool(
    x_ptr, y_ptr, PIXELS, C, STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y (N, C): the mean over the PIXELS of each image of x (N, PIXELS, C), summed in float32 in STEPS blocks."""
    tiles_n = tl.cdiv(C, BLOCK_N)
    pid = widen(tl.program_id(0), WIDE)
    image = pid // tiles_n
    channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channel < C
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(STEPS):
        pixel = step * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (pixel < PIXELS)[:, None] & inside[None, :]
        source = x_ptr + ((image * PIXELS + pixel) * C)[:, None] + channel[None, :]
        total += tl.load(source, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / PIXELS.to(tl.float32)
    tl.store(y_ptr + image * C + channel, mean.to(y_ptr.dtype.element_ty), mask=inside)
