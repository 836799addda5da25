"""A 1x1 convolution and its batch norm without the convolution's output: DESIGN's lever A, "z3-free".

For `z = a W^T` the statistics follow from the activations' sum and Gram matrix, and the whole backward pass from
`M = sum_p g a^T`, `sum_p g` and `g (alpha W)`, which share one read of g.  `a` is `prologue(input) - center` with any
per-channel centre: batch norm does not see a constant, and subtracting it removes the cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import training as raw
from .norm import Affine, Normalized, constant


class Tail(NamedTuple):
    """What the forward pass leaves for the backward one, besides the input map."""

    norm: Normalized
    center: Tensor
    total: Tensor
    gram: Tensor


class TailGradients(NamedTuple):
    """`t` is g (alpha W), to be finished by `quadratic` and `constant` once these are known; the rest are gradients."""

    t: Tensor
    quadratic: Tensor
    constant: Tensor
    weight: Tensor
    bn_weight: Tensor
    bn_bias: Tensor


def statistics(z: Tensor, in_scale, in_shift, weight: Tensor, affine: Affine, stride: int) -> Tail:
    """The batch norm of `prologue(z) W^T` at every `stride`-th pixel, from one pass over z."""
    center, total, gram = raw.gram(z, in_scale, in_shift, stride)
    if affine.running_mean is not None:
        return Tail(constant(affine, z), center, total, gram)
    count = z.shape[0] * -(-z.shape[2] // stride) * -(-z.shape[3] // stride)
    vectors = raw.gram_finalize(center, total, gram, count, weight, affine.weight, affine.bias, affine.eps)
    return Tail(Normalized(*vectors, batch=True), center, total, gram)


def gradients(
    tail: Tail, grad: Tensor, out: Tensor | None, z: Tensor, in_scale, in_shift, weight: Tensor, stride: int
) -> TailGradients:
    """Everything that follows from one read of `grad`, masked by `out > 0` where `out` is given.

    Args:
        weight: (K, C, 1, 1) as the forward pass used it.
    """
    norm = tail.norm
    scaled = (norm.scale[:, None] * weight.flatten(1)).to(z.dtype)
    products, sum_g, t = raw.gram_products(grad, out, z, in_scale, in_shift, tail.center, scaled, stride)
    count = grad.shape[0] * grad.shape[2] * grad.shape[3]
    # These are small and cancel against each other: float64 costs nothing and loses nothing.
    matrix, products, total, gram, center = (
        tensor.double() for tensor in (weight.flatten(1), products, tail.total, tail.gram, tail.center)
    )
    scale, invstd, b = norm.scale.double(), norm.invstd.double(), sum_g.double()
    # the mean of a W^T, a being centred
    mean = norm.mean.double() - matrix @ center
    bn_weight = ((matrix * products).sum(1) - mean * b) * invstd
    if norm.batch:
        beta = -scale * invstd * bn_weight / count
        kappa = -scale * b / count - beta * mean
        d_weight = scale[:, None] * products + beta[:, None] * (matrix @ gram) + torch.outer(kappa, total)
        quadratic, linear = matrix.T @ (beta[:, None] * matrix), matrix.T @ kappa
    else:
        d_weight = scale[:, None] * (products + torch.outer(b, center))
        quadratic, linear = torch.zeros_like(gram), torch.zeros_like(total)
    wide = norm.scale.dtype
    found = (tensor.to(wide) for tensor in (quadratic, linear, d_weight.view_as(weight), bn_weight))
    return TailGradients(t, *found, sum_g)
