"""The Gram matrix of a 1x1 convolution's input over the compiled kernels; see `fused_resnet.ops.training.gram`.

`gram_finalize` is algebra on a few vectors and matrices, in float64: torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...shapes import output_extent
from .. import gram_check
from ..reference.gram_matrix import gram_finalize
from .launch import ask, dense_nhwc, floats_like, map_like, nhwc, run, vector
from .passes import sums_of

__all__ = ["gram", "gram_backward_finish", "gram_finalize"]


def gram(
    z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, weight: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A centre (C,), and the sum (C,) and the Gram matrix (C, C) of the strided activations about it."""
    z = dense_nhwc(z)
    c, extents = z.shape[1], (*nhwc(z), stride)
    rows = ask("conv1x1_gram_rows", z, *extents)
    outputs = floats_like(z, c), floats_like(z, c), floats_like(z, c, c)
    partials = floats_like(z, rows, c + 1, c)
    run("conv1x1_gram", z, vector(in_scale), vector(in_shift), *outputs, partials, rows, z.dtype, *extents)
    center, total, products = outputs

    def summed_again(flag: Tensor) -> Tensor:
        rows = ask("conv1x1_gram_exact_rows", z, *extents)
        slices = floats_like(z, rows, c + 1, c, 2).view(torch.float64).squeeze(-1)
        given = (z, vector(in_scale), vector(in_shift), center, flag, slices)
        run("conv1x1_gram_exact", *given, rows, z.dtype, *extents)
        return slices

    count = z.shape[0] * output_extent(z.shape[2], 1, stride, 0) * output_extent(z.shape[3], 1, stride, 0)
    checked = gram_check.checked(total.double(), products.double(), weight, count, z.dtype, summed_again)
    return center, *checked


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
    """`t + (prologue(z) - center) @ quadratic + constant`, masked by the prologue's ReLU, and its sums.

    `quadratic` is multiplied as the sum of two matrices of z's dtype, of its leading and of its trailing bits."""
    t, z = dense_nhwc(t), dense_nhwc(z)
    extents = nhwc(z)
    g = map_like(t, tuple(t.shape))
    leading = quadratic.to(z.dtype)
    parts = torch.stack((leading, (quadratic - leading).to(z.dtype)))
    rows = ask("conv1x1_gram_finish_rows", z, *extents)
    partials = floats_like(z, rows, 2, z.shape[1])
    maps = (t, z, vector(in_scale), vector(in_shift), vector(center), parts)
    vectors = (vector(constant), vector(below_mean))
    run("conv1x1_gram_finish", *maps, *vectors, g, partials, rows, z.dtype, *extents)
    return g, *sums_of(partials)
