"""What the reference's ops are made of: shortcuts, the norm prologue, masks, sums, the merging of partials.

`wide` is float32, or float64 for float64: what products, sums and per-channel vectors are computed in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shortcut(residual: Tensor, out_channels: int, stride: int) -> Tensor:
    """The residual as it is added: itself, or option A of it where channels or stride differ."""
    if stride == 1 and residual.shape[1] == out_channels:
        return residual
    return option_a_shortcut(residual, out_channels, stride)


def option_a_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """Subsampled in space and zero-padded in channels; see `fused_resnet.ops.option_a_shortcut`."""
    missing = out_channels - x.shape[1]
    below = missing // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, below, missing - below))


def wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def channels(vector: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector per channel in `dtype`, to be broadcast over a map."""
    return vector.to(dtype).view(1, -1, 1, 1)


def affine(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`z * scale + shift` per channel, wide."""
    wide = wide_dtype(z)
    return torch.addcmul(channels(shift, wide), z.to(wide), channels(scale, wide))


def prologue(z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None) -> Tensor:
    """`relu(z * in_scale + in_shift)` computed wide, rounded to z's dtype; z itself without a norm."""
    return z if in_scale is None else torch.relu(affine(z, in_scale, in_shift)).to(z.dtype)


def add_act(y: Tensor, residual: Tensor | None, residual_stride: int, act: str, dtype: torch.dtype) -> Tensor:
    """`act(y + shortcut(residual))`, rounded to `dtype`."""
    if residual is not None:
        y = y + shortcut(residual, y.shape[1], residual_stride)
    return (torch.relu(y) if act == "relu" else y).to(dtype)


def masked(grad: Tensor, activated: Tensor | None) -> Tensor:
    """`grad` where `activated > 0`, zero elsewhere; a NaN in `activated` lets it pass, as in torch's ReLU backward."""
    return grad if activated is None else torch.where(activated <= 0, 0, grad)


def add_skip(dx: Tensor, skip: Tensor | None, skip_out: Tensor | None, skip_stride: int) -> None:
    """Adds to every `skip_stride`-th pixel of dx, in place, a shortcut's gradient, masked by `skip_out > 0`."""
    if skip is not None:
        dx[:, :, ::skip_stride, ::skip_stride] += masked(skip, skip_out)


def rows(x: Tensor) -> Tensor:
    """The map as a (pixels, channels) matrix, wide; pixels in (n, h, w) order."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).to(wide_dtype(x))


def masked_sums(g: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over pixels of g and of `g * (z - mean)`, (C,) each, wide."""
    flat = rows(g)
    return flat.sum(0), (flat * (rows(z) - mean.to(flat.dtype))).sum(0)


def merge(partials: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The (count, mean, M2) of all pixels, (K,) each: neighbours are merged, then their results, as a binary tree.

    Chan, Golub and LeVeque 1983, equation 2.1.  Empty rows change nothing.
    """
    if not len(partials):
        return partials.new_zeros(3, partials.shape[2]).unbind()
    while len(partials) > 1:
        even = len(partials) // 2 * 2
        (count, mean, m2), (other, other_mean, other_m2) = (partials[i:even:2].unbind(1) for i in (0, 1))
        total = count + other
        share = other / total.clamp(min=1)
        delta = other_mean - mean
        mean = torch.where(count == 0, other_mean, mean + delta * share)
        merged = torch.stack((total, mean, m2 + other_m2 + delta * delta * count * share), dim=1)
        partials = torch.cat((merged, partials[even:]))
    return partials[0].unbind()


def normalizing(
    mean: Tensor, var: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`mean, var, invstd, scale, shift`; a missing weight is one, a missing bias zero."""
    invstd = torch.rsqrt(var + eps)
    scale = invstd.clone() if bn_weight is None else bn_weight.to(mean.dtype) * invstd
    shift = -mean * scale if bn_bias is None else bn_bias.to(mean.dtype) - mean * scale
    return mean, var, invstd, scale, shift
