"""What the training kernels do to the tiles that they load and leave behind.

A tile here is (pixels, channels), pixels as the rows: the operand that a prologue transforms is then the left one of a
dot, which wgmma takes from registers, so that loads stay asynchronous.  Vectors are float32, one element a channel.
"""

import triton
import triton.language as tl

from ..common import relu


@triton.jit
def vector(ptr, channel, inside):
    """Float32 elements of a vector, zero where not `inside`; None where there is no vector."""
    value = None
    if ptr is not None:
        value = tl.load(ptr + channel, mask=inside, other=0.0)
    return value


@triton.jit
def normalized(z, scale, shift, inside):
    """relu(z * scale + shift), rounded to z's dtype, and zero where not `inside`: the padding of a prologue.

    Without a scale, z, which is loaded as zero where not inside."""
    if scale is not None:
        value = relu(z.to(tl.float32) * scale[None, :] + shift[None, :])
        z = tl.where(inside, value, 0.0).to(z.dtype)
    return z


@triton.jit
def centered(a, center, inside):
    """a - center, rounded to a's dtype, and zero where not `inside`; a where there is no center."""
    if center is not None:
        a = tl.where(inside, a.to(tl.float32) - center[None, :], 0.0).to(a.dtype)
    return a


@triton.jit
def unless_rectified(value, out):
    """`value` where ReLU's output was not zero: as torch has it, where `out` is NaN too."""
    return tl.where(out.to(tl.float32) <= 0.0, 0.0, value)


@triton.jit
def unless_rectified_by(value, z, scale, shift):
    """`value` where z * scale + shift was not rectified."""
    return tl.where(z.to(tl.float32) * scale[None, :] + shift[None, :] <= 0.0, 0.0, value)


@triton.jit
def bn_backward(g_ptr, z_ptr, out_ptr, a, b, c, offset, inside):
    """The tile of a gradient at `offset`: g; g where `out` > 0; or a * g + b * z + c, rounded to g's dtype.

    Zero where not `inside`: beyond the map there is no gradient, not even the constant c."""
    g = tl.load(g_ptr + offset, mask=inside, other=0.0)
    if out_ptr is not None:
        g = unless_rectified(g, tl.load(out_ptr + offset, mask=inside, other=1.0)).to(g.dtype)
    if a is not None:
        value = g.to(tl.float32) * a[None, :]
        if b is not None:
            z = tl.load(z_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(inside, value + (z * b[None, :] + c[None, :]), 0.0)
        g = value.to(g.dtype)
    return g


@triton.jit
def plus_skip(
    value, skip_ptr, skip_out_ptr, row, image, line, column, row_inside, channel, channel_inside, H, W,
    C: tl.constexpr, STRIDE: tl.constexpr,
):  # fmt: skip
    """value + skip where `skip_out` > 0, at the pixels (image, line, column) of a map N x H x W that are multiples of
    STRIDE; `row` numbers the pixels, which for STRIDE 1 are those of the skip."""
    pixel = row
    if STRIDE > 1:
        skip_h = (H + STRIDE - 1) // STRIDE
        skip_w = (W + STRIDE - 1) // STRIDE
        pixel = (image * skip_h + line // STRIDE) * skip_w + column // STRIDE
        row_inside = row_inside & (line % STRIDE == 0) & (column % STRIDE == 0)
    mask = row_inside[:, None] & channel_inside[None, :]
    offset = (pixel * C)[:, None] + channel[None, :]
    skip = tl.load(skip_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    if skip_out_ptr is not None:
        skip = unless_rectified(skip, tl.load(skip_out_ptr + offset, mask=mask, other=1.0))
    return value + skip


@triton.jit
def store_statistics(partials_ptr, tile, z, row_inside, channel, K):
    """(count, mean, M2) of the tile z (pixels, channels) in row `tile` of partials (tiles, 3, K).

    M2 is about the tile's own mean: nothing cancels, however large the mean is beside the deviation."""
    count = tl.sum(row_inside.to(tl.float32), axis=0)
    z = z.to(tl.float32)
    mean = tl.sum(tl.where(row_inside[:, None], z, 0.0), axis=0) / count
    deviation = tl.where(row_inside[:, None], z - mean[None, :], 0.0)
    at = partials_ptr + tile * 3 * K + channel
    inside = channel < K
    tl.store(at, tl.zeros(channel.shape, tl.float32) + count, mask=inside)
    tl.store(at + K, mean, mask=inside)
    tl.store(at + 2 * K, tl.sum(deviation * deviation, axis=0), mask=inside)


@triton.jit
def store_sums(sums_ptr, tile, g, z, mean_ptr, channel, K):
    """The sums over the tile's pixels of g and of g * (z - mean), in row `tile` of sums (tiles, 2, K).

    g (pixels, channels) is zero where the tile is beyond the map."""
    inside = channel < K
    g = g.to(tl.float32)
    mean = tl.load(mean_ptr + channel, mask=inside, other=0.0)
    at = sums_ptr + tile * 2 * K + channel
    tl.store(at, tl.sum(g, axis=0), mask=inside)
    tl.store(at + K, tl.sum(g * (z.to(tl.float32) - mean[None, :]), axis=0), mask=inside)


@triton.jit
def shortcut_rows(
    residual_ptr, row, image, line, column, row_inside, channel, channel_inside, RES_H, RES_W, K, RES_C,
    RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr,
):  # fmt: skip
    """Float32 (pixels, channels) tile of the residual: itself, or subsampled between zero channels (option A)."""
    pixel = row
    source = channel
    if OPTION_A:
        pixel = (image * RES_H + line * RES_STRIDE) * RES_W + column * RES_STRIDE
        source = channel - (K - RES_C) // 2
        channel_inside = (source >= 0) & (source < RES_C)
    mask = row_inside[:, None] & channel_inside[None, :]
    return tl.load(residual_ptr + (pixel * RES_C)[:, None] + source[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_activated(
    value, y_ptr, scale_ptr, shift_ptr, residual_ptr, row, image, line, column, row_inside, channel,
    RES_H, RES_W, K, RES_C, RES_STRIDE: tl.constexpr, OPTION_A: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """y = act(value * scale + shift + shortcut), rounded once."""
    inside = channel < K
    scale = tl.load(scale_ptr + channel, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + channel, mask=inside, other=0.0)
    y = value * scale[None, :] + shift[None, :]
    if residual_ptr is not None:
        y += shortcut_rows(
            residual_ptr, row, image, line, column, row_inside, channel, inside, RES_H, RES_W, K, RES_C,
            RES_STRIDE, OPTION_A,
        )  # fmt: skip
    if RELU:
        y = relu(y)
    mask = row_inside[:, None] & inside[None, :]
    tl.store(y_ptr + (row * K)[:, None] + channel[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
