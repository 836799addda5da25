"""The stem after its convolution: batch norm, ReLU and max-pool in one pass, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ArgumentError
from ..library import Output, register
from . import checks


def _describe_forward(z, scale, shift, kernel, stride, padding):
    op = "bn_relu_maxpool"
    checks.feature_map(op, "z", z)
    call = checks.Arguments(op, "z", z)
    n, k, h, w = z.shape
    call.vectors(k, scale=scale, shift=shift)
    p, q = call.pool(h, w, kernel, stride, padding)
    return [Output((n, k, p, q), z.dtype), Output((n, k, p, q), torch.uint8)], {}


_bn_relu_maxpool = register(
    "bn_relu_maxpool(Tensor z, Tensor scale, Tensor shift, int kernel, int stride, int padding) -> (Tensor, Tensor)",
    _describe_forward,
)


def bn_relu_maxpool(
    z: Tensor, scale: Tensor, shift: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """`y = maxpool(relu(z * scale + shift))`, and where in its window each maximum lies.

    The activation is rounded to z's dtype before it is compared, so that ties fall as in torch: the first of the
    window, row by row.  The padding is minus infinity.

    Args:
        z: (N, K, H, W).
        scale, shift: (K,).
        kernel, stride, padding: of the square window; kernel at most 16.

    Returns:
        `(y, argmax)`: y (N, K, P, Q) of z's dtype; argmax (N, K, P, Q) uint8, `row * kernel + column` in the window.
    """
    return _bn_relu_maxpool(z, scale, shift, kernel, stride, padding)


def _describe_backward(grad, argmax, z, scale, shift, mean, kernel, stride, padding):
    op = "bn_relu_maxpool_backward"
    checks.feature_map(op, "grad", grad)
    call = checks.Arguments(op, "grad", grad)
    call.feature_map("z", z)
    n, k, h, w = z.shape
    call.vectors(k, scale=scale, shift=shift, mean=mean)
    size = (n, k, *checks.Arguments(op, "z", z).pool(h, w, kernel, stride, padding))
    if tuple(grad.shape) != size:
        call.refuse(f"pooling z of {tuple(z.shape)} gives {size}, which grad of {tuple(grad.shape)} is no gradient of")
    if argmax.dtype != torch.uint8 or tuple(argmax.shape) != size:
        raise ArgumentError(
            f"{op}: argmax must be uint8 of shape {size}, as bn_relu_maxpool returns it,"
            f" got {argmax.dtype} of {tuple(argmax.shape)}"
        )
    call.device("argmax", argmax)
    sums = Output((k,), checks.wide_dtype(grad))
    return [Output((n, k, h, w), grad.dtype), sums, sums], {}


_bn_relu_maxpool_backward = register(
    "bn_relu_maxpool_backward(Tensor grad, Tensor argmax, Tensor z, Tensor scale, Tensor shift, Tensor mean,"
    " int kernel, int stride, int padding) -> (Tensor, Tensor, Tensor)",
    _describe_backward,
)


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
    """The gradient g of the batch norm's output, from that of `bn_relu_maxpool`'s.

    Each pixel gathers grad from the windows whose maximum it is, and is masked by `z * scale + shift > 0`.

    Args:
        grad: (N, K, P, Q).
        argmax: (N, K, P, Q) uint8, from the forward pass.
        z: (N, K, H, W), the norm's input, of grad's dtype.
        scale, shift, mean: (K,).
        kernel, stride, padding: as in the forward pass.

    Returns:
        `(g, sum_g, sum_gz)`: g (N, K, H, W) of grad's dtype; `sum_g = sum_p g` and `sum_gz = sum_p g * (z - mean)`,
        (K,) each, wide.
    """
    return _bn_relu_maxpool_backward(grad, argmax, z, scale, shift, mean, kernel, stride, padding)
