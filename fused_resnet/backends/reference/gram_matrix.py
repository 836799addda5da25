"""The training ops of a 1x1 convolution whose output is not stored, in plain PyTorch; see `reference_training`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts import add_act, affine, channels, masked, masked_sums, normalizing, prologue, rows, wide_dtype

FIRST_TILE = 128  # pixels that the centre is taken from
DOUBLES_AT_ONCE = 2**20  # elements of a map, of which a copy in float64 is made
CENTERED_BEYOND = 4  # deviations, in 16 bits: nearer to zero the raw value is exact, and the rounded difference is not


def _centered(z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, center: Tensor, stride: int) -> Tensor:
    """`prologue(z)` at every `stride`-th pixel minus `center`, rounded to z's dtype."""
    a = prologue(z[:, :, ::stride, ::stride], in_scale, in_shift)
    return a - channels(center, z.dtype)


def gram(
    z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, weight: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A centre, and the sum and the Gram matrix of the activations about it: in float64, whatever the filters."""
    sampled = z[:, :, ::stride, ::stride]
    var, mean = torch.var_mean(rows(prologue(sampled, in_scale, in_shift))[:FIRST_TILE], dim=0, correction=0)
    beyond = 0 if z.dtype == wide_dtype(z) else CENTERED_BEYOND
    center = torch.where(mean.abs() > beyond * var.sqrt(), mean, 0).to(z.dtype)
    a = _centered(sampled, in_scale, in_shift, center, 1)
    flat = rows(a)
    return center.to(wide_dtype(z)), flat.sum(0, dtype=torch.float64), _products(flat, flat)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """`left^T right` of two (pixels, channels) matrices in float64, of which few pixels at a time are copies."""
    products = left.new_zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    run = max(1, DOUBLES_AT_ONCE // max(left.shape[1], right.shape[1]))
    for a, b in zip(left.split(run), right.split(run), strict=True):
        products.addmm_(a.double().T, b.double())
    return products


def gram_finalize(
    center: Tensor,
    total: Tensor,
    gram: Tensor,
    count: int,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean, biased variance, invstd, scale and shift of `a @ weight^T` from the sums over a."""
    # The quadratic form cancels where channels are correlated, and is small beside a pass over a map: float64.
    matrix = weight.flatten(1).double()
    average = total.double() / max(count, 1)
    covariance = gram.double() / max(count, 1) - torch.outer(average, average)
    var = ((matrix @ covariance) * matrix).sum(1).clamp(min=0)
    mean = matrix @ (center.double() + average)
    return normalizing(mean.to(center.dtype), var.to(center.dtype), bn_weight, bn_bias, eps)


def conv1x1_bn_add_act(
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: tuple[int, int],
    residual_stride: int,
    act: str,
) -> Tensor:
    """`act(scale * conv1x1(prologue(z)) + shift + shortcut(residual))`."""
    wide = wide_dtype(z)
    y = F.conv2d(prologue(z, in_scale, in_shift).to(wide), weight.to(wide), None, stride)
    return add_act(affine(y, scale, shift), residual, residual_stride, act, z.dtype)


def gram_products(
    grad: Tensor,
    out: Tensor | None,
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    center: Tensor,
    weight: Tensor,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`g^T a`, the sum of g, and `g @ weight`, where g is `grad` masked by `out`."""
    g = rows(masked(grad, out))
    a = _centered(z, in_scale, in_shift, center, stride)
    n, c, p, q = a.shape
    t = (g @ weight.to(g.dtype)).to(z.dtype).view(n, p, q, c).permute(0, 3, 1, 2)
    # what the filters' gradient and its norm's make of the products cancels as the variance does
    return _products(g, rows(a)).to(g.dtype), g.sum(0, dtype=torch.float64).to(g.dtype), t


def gram_backward_finish(
    t: Tensor,
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    center: Tensor,
    quadratic: Tensor,
    constant: Tensor,
    below_mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`t + a @ quadratic + constant`, masked by the ReLU of the prologue, and its sums."""
    a = _centered(z, in_scale, in_shift, center, 1)
    n, c, p, q = a.shape
    # the constant first, as in the kernels
    flat = rows(t) + torch.addmm(constant.to(wide_dtype(t)), rows(a), quadratic.to(wide_dtype(t)))
    g = flat.view(n, p, q, c).permute(0, 3, 1, 2)
    if in_scale is not None:
        g = masked(g, prologue(z, in_scale, in_shift))
    g = g.to(t.dtype)
    return g, *masked_sums(g, z, below_mean)
