"""The training ops in plain PyTorch, on any device and in any floating-point dtype; see `fused_resnet.ops.training`.

Products, sums and per-channel vectors are computed wide (float32, or float64 for float64), and maps are rounded to
their dtype once, where an op returns them or says that it rounds: what other backends' kernels do in registers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts import (
    add_act,
    add_skip,
    affine,
    channels,
    masked,
    masked_sums,
    merge,
    normalizing,
    prologue,
    rows,
    wide_dtype,
)

TILE = 128  # pixels to a row of partials


def _bn_backward(g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> Tensor:
    """`a * g + b * z + c`, the gradient of a batch norm's input, rounded to g's dtype and given wide."""
    wide = wide_dtype(g)
    dz = g.to(wide) * channels(a, wide)
    if b is not None:
        dz = torch.addcmul(dz, z.to(wide), channels(b, wide)) + channels(c, wide)
    return dz.to(g.dtype).to(wide)


def conv_stats(
    x: Tensor,
    weight: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """A convolution with a norm prologue and a statistics epilogue."""
    wide = wide_dtype(x)
    a = prologue(x, in_scale, in_shift).to(wide)
    z = F.conv2d(a, weight.to(wide), None, stride, padding, dilation, groups).to(x.dtype)
    return z, channel_stats(z)


def channel_stats(z: Tensor) -> Tensor:
    """(count, mean, M2) of every run of 128 pixels, (tiles, 3, K)."""
    flat = rows(z)
    full = len(flat) // TILE * TILE
    tiles = [flat[:full].view(-1, TILE, flat.shape[1])]
    if full < len(flat):
        tiles.append(flat[full:].unsqueeze(0))
    partials = []
    for tile in tiles:
        mean = tile.mean(1)
        m2 = (tile - mean.unsqueeze(1)).square().sum(1)
        partials.append(torch.stack((torch.full_like(mean, tile.shape[1]), mean, m2), dim=1))
    return torch.cat(partials)


def bn_finalize(
    partials: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean, biased variance, invstd, scale and shift from partials."""
    count, mean, m2 = merge(partials)
    return normalizing(mean.clone(), m2 / count.clamp(min=1), bn_weight, bn_bias, eps)


def bn_add_act(
    z: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, residual_stride: int, act: str
) -> Tensor:
    """`act(z * scale + shift + shortcut(residual))`."""
    return add_act(affine(z, scale, shift), residual, residual_stride, act, z.dtype)


def bn_backward_apply(g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> Tensor:
    """`a * g + b * z + c`."""
    return _bn_backward(g, z, a, b, c).to(g.dtype)


def bn_act_backward(grad: Tensor, out: Tensor | None, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`grad` masked by `out`, and its sums."""
    g = masked(grad, out)
    return (g.clone() if g is grad else g), *masked_sums(g, z, mean)


def conv_dgrad(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    input_size: list[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    below_z: Tensor | None,
    below_scale: Tensor | None,
    below_shift: Tensor | None,
    below_mean: Tensor | None,
    below_out: Tensor | None,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a convolution's input, the skip's added, masked by the ReLU below, and its sums."""
    dz = _bn_backward(g, z, a, b, c)
    dx = torch.nn.grad.conv2d_input(input_size, weight.to(dz.dtype), dz, stride, padding)
    add_skip(dx, skip, skip_out, skip_stride)
    dx = masked(dx, below_out if below_scale is None else affine(below_z, below_scale, below_shift)).to(g.dtype)
    if below_z is None:
        empty = dx.new_empty(0, dtype=wide_dtype(g))
        return dx, empty, empty.clone()
    return dx, *masked_sums(dx, below_z, below_mean)


def conv1x1_backward(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    x: Tensor,
    rectified: bool,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of a 1x1 convolution's input, the skip's added, and of its weight."""
    below_out = x if rectified else None
    nothing = (None,) * 4
    window = ((1, 1), (0, 0))
    dx, _, _ = conv_dgrad(
        g, z, a, b, c, weight, list(x.shape), *window, *nothing, below_out, skip, skip_out, skip_stride
    )
    return dx, conv_wgrad(g, z, a, b, c, x, None, None, list(weight.shape), *window)


def conv_wgrad(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    x: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight_size: list[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The gradient of a convolution's weight, wide."""
    dz = _bn_backward(g, z, a, b, c)
    source = prologue(x, in_scale, in_shift).to(dz.dtype)
    return torch.nn.grad.conv2d_weight(source, weight_size, dz, stride, padding)


def bn_relu_maxpool(
    z: Tensor, scale: Tensor, shift: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """The pooled map, and where in its window each maximum lies."""
    a = prologue(z, scale, shift)
    y, index = F.max_pool2d(a, kernel, stride, padding, return_indices=True)
    width = z.shape[3]
    p, q = (torch.arange(extent, device=z.device) * stride - padding for extent in y.shape[2:])
    row, column = index // width - p.view(-1, 1), index % width - q
    return y, (row * kernel + column).to(torch.uint8)


def bn_relu_maxpool_backward(
    grad: Tensor,
    argmax: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    kernel: int,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The pooling's gradient masked by the ReLU, and its sums; added tap by tap, so that the order is fixed."""
    n, k, h, w = z.shape
    wide = wide_dtype(z)
    p, q = grad.shape[2:]
    extents = (max(extent + padding, (count - 1) * stride + kernel) for extent, count in ((h, p), (w, q)))
    padded = torch.zeros((n, k, *extents), dtype=wide, device=z.device)
    for tap in range(kernel * kernel):
        row, column = divmod(tap, kernel)
        taken = padded[:, :, row::stride, column::stride][:, :, :p, :q]
        taken += torch.where(argmax == tap, grad, 0)
    g = padded[:, :, padding : padding + h, padding : padding + w]
    g = masked(g, prologue(z, scale, shift)).to(z.dtype)
    return g, *masked_sums(g, z, mean)
