"""A 1x1 convolution and its batch norm without the convolution's output: DESIGN's lever A, "z3-free".

For `z = a W^T` the statistics follow from the activations' sum and Gram matrix, and the whole backward pass from
`M = sum_p g a^T`, `sum_p g` and `g (alpha W)`, which share one read of g.  `a` is `prologue(input) - center` with any
per-channel centre: batch norm does not see a constant, and subtracting it removes the cancellation.

Where ranks share the statistics, each has its own centre, sum and Gram matrix, and sends only what they give: the mean
and variance of z, and the two sums of g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import training as raw
from .norm import Affine, Batch, Normalized, all_ranks, constant, pixels, shared


class Tail(NamedTuple):
    """What the forward pass leaves for the backward one, besides the input map.

    `total` and `gram` are float64, and None for constant statistics, which need no pass over the input.
    """

    norm: Normalized
    center: Tensor
    total: Tensor | None
    gram: Tensor | None


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
    if affine.running_mean is not None:
        normalized = constant(affine, z)
        center = normalized.mean.new_zeros(z.shape[1])
        if affine.weight is not None and affine.weight.requires_grad:
            # Its gradient alone cancels here, and one image tells well enough where the activations lie.
            center = raw.gram(z[:1], in_scale, in_shift, None, stride)[0]
        return Tail(normalized, center, None, None)
    sums = raw.gram(z, in_scale, in_shift, weight, stride)
    count = pixels(z[:, :, ::stride, ::stride])
    if affine.group is None:
        vectors = raw.gram_finalize(*sums, count, weight, affine.weight, affine.bias, affine.eps)
        return Tail(Normalized(*vectors, None, Batch(None)), *sums)
    mean, var, *_ = raw.gram_finalize(*sums, count, weight, None, None, affine.eps)
    return Tail(shared(affine, count, mean, var), *sums)


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
    # These are small and cancel against each other: float64 costs nothing and loses nothing.
    matrix, products, center = (tensor.double() for tensor in (weight.flatten(1), products, tail.center))
    scale, invstd, b = norm.scale.double(), norm.invstd.double(), sum_g.double()
    # the mean of a W^T, a being centred
    mean = norm.mean.double() - matrix @ center
    # the sum of g * (z - mean)
    sum_gz = (matrix * products).sum(1) - mean * b
    if norm.batch is None:
        d_weight = scale[:, None] * (products + torch.outer(b, center))
        quadratic, linear = products.new_zeros(len(center), len(center)), torch.zeros_like(center)
    else:
        own = pixels(grad)
        total, gram = tail.total, tail.gram
        all_b, all_gz, count = all_ranks(norm, (b, sum_gz), own)
        beta = -scale * invstd * (all_gz * invstd) / count
        kappa = -scale * all_b / count - beta * mean
        d_weight = scale[:, None] * products + beta[:, None] * (matrix @ gram) + torch.outer(kappa, total)
        if norm.batch.group is not None:
            # The gradient of z sums to zero over all ranks' pixels, but not over one's: its centre counts.
            d_weight += torch.outer(scale * b + beta * (matrix @ total) + kappa * own, center)
        quadratic, linear = matrix.T @ (beta[:, None] * matrix), matrix.T @ kappa
    wide = norm.scale.dtype
    found = (tensor.to(wide) for tensor in (quadratic, linear, d_weight.view_as(weight), sum_gz * invstd))
    return TailGradients(t, *found, sum_g)
