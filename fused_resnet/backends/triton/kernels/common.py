"""The steps that the kernels share: which tile, which pixel, and what is done to an accumulator before it is stored.

Every feature map here is dense NHWC.  A pointer argument that is None costs nothing: the branch is gone when compiled.

An output tile is (channels, pixels), filters as the rows.  A thread then owns accumulators of a few channels, and scale
and shift cost it a few registers; with pixels as rows it would own dozens, and spill.
"""

import triton
import triton.language as tl


@triton.jit
def relu(value):
    """max(value, 0) that keeps NaN, as torch.relu does."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def widen(scalar, WIDE: tl.constexpr):
    """`scalar` in 64 bits where offsets can pass 2^31; all that is computed from it then is, too."""
    if WIDE:
        scalar = scalar.to(tl.int64)
    return scalar


@triton.jit
def grouped_tile(pid, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(tile_m, tile_n) of a program: GROUP_M tiles of pixels share a sweep over the filters, to meet again in L2."""
    group = pid // (GROUP_M * tiles_n)
    within = pid % (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    return first + within % height, within // height


@triton.jit
def pixel_of(row, height, width):
    """(image, line, column) of the row-th pixel of a map with `height` x `width` pixels an image."""
    line = row // width
    return line // height, line % height, row % width


@triton.jit
def scale_and_shift(bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, eps, channel, inside):
    """Float32 scale and shift of `channel`, from the BN vectors as they are now."""
    scale = tl.full(channel.shape, 1.0, tl.float32)
    shift = tl.full(channel.shape, 0.0, tl.float32)
    if bn_weight_ptr is not None:
        scale = tl.load(bn_weight_ptr + channel, mask=inside, other=1.0).to(tl.float32)
    if bn_bias_ptr is not None:
        shift = tl.load(bn_bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    if running_var_ptr is not None:
        mean = tl.load(running_mean_ptr + channel, mask=inside, other=0.0).to(tl.float32)
        var = tl.load(running_var_ptr + channel, mask=inside, other=1.0).to(tl.float32)
        scale = tl.div_rn(scale, tl.sqrt_rn(var + eps))
        shift = shift - mean * scale
    return scale, shift


@triton.jit
def shortcut_tile(
    residual_ptr, row, image, line, column, row_inside, channel, channel_inside, RES_H, RES_W, K, RES_C,
    RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr,
):  # fmt: skip
    """Float32 (channels, pixels) tile of the residual: itself, or subsampled between zero channels (option A)."""
    pixel = row
    source = channel
    if OPTION_A:
        pixel = (image * RES_H + line * RES_STRIDE) * RES_W + column * RES_STRIDE
        source = channel - (K - RES_C) // 2
        channel_inside = (source >= 0) & (source < RES_C)
    mask = row_inside[None, :] & channel_inside[:, None]
    return tl.load(residual_ptr + (pixel * RES_C)[None, :] + source[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def finish_tile(
    acc, y_ptr, bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, residual_ptr, eps,
    row, image, line, column, row_inside, channel, RES_H, RES_W, K, RES_C,
    RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """The epilogue: act(acc * scale + shift + shortcut), rounded once and stored in y (pixels, K)."""
    channel_inside = channel < K
    scale, shift = scale_and_shift(
        bn_weight_ptr, bn_bias_ptr, running_mean_ptr, running_var_ptr, eps, channel, channel_inside
    )
    y = acc * scale[:, None] + shift[:, None]
    if residual_ptr is not None:
        y += shortcut_tile(
            residual_ptr, row, image, line, column, row_inside, channel, channel_inside, RES_H, RES_W, K, RES_C,
            RES_STRIDE, OPTION_A,
        )  # fmt: skip
    if RELU:
        y = relu(y)
    mask = row_inside[None, :] & channel_inside[:, None]
    tl.store(y_ptr + (row * K)[None, :] + channel[:, None], y.to(y_ptr.dtype.element_ty), mask=mask)
