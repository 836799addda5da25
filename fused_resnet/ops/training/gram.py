"""A 1x1 convolution whose output is never stored before its batch norm.

With activations `a = prologue(z)` (P pixels x C) and the convolution `a W^T` (W: K x C), the norm's statistics follow
from the sum S and the Gram matrix G of a: `mean = W S / P`, `var = diag(W (G / P - S S^T / P^2) W^T)`.  Backward, with
the masked gradient g (P x K), `M = g^T a` and `b = sum_p g`:

    dbias   = b                                     alpha = bn_weight * invstd
    dweight = (rowsum(W o M) - mean b) * invstd     beta  = -alpha * invstd * dweight / P
    dW      = alpha M + beta (W G) + kappa S^T      kappa = -alpha * b / P - beta * mean
    da      = g (alpha W) + a (W^T beta W) + W^T kappa

A norm does not see a constant, so all of it holds for `a - center` with any centre per channel, `mean` then being that
of `(a - center) W^T`.  The centre removes the cancellation in channels whose mean is large against their deviation.

**Filters nearly orthogonal to what their channels share.**  The variance of filter k cancels from
`Q_k = sum_c w_kc^2 G_cc / P` where channels are correlated.  With `rho^2 = var_k / Q_k`, a convolution that sums in
precision u leaves z, and whatever is computed from it, with a relative error of `u / rho`; a Gram matrix of relative
accuracy u_G leaves var_k with `u_G / rho^2`, and `W G` in dW with `u_G / (u rho)` times the error of the stored path.
In float64 either is far below the stored path's as long as rho is above 1e-9, in float32 it is not.  So total and gram
are float64, and must be good to float64 wherever some var_k is small against its Q_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...shapes import output_extent
from ..library import Output, register
from . import checks


def _strided(size, stride: int) -> tuple[int, int]:
    return tuple(output_extent(extent, 1, stride, 0) for extent in size[2:])


def _pointwise(call: checks.Arguments, weight: Tensor, channels: int) -> int:
    """The filters of a 1x1 convolution's weight."""
    if weight.dim() != 4:
        call.refuse(f"weight must be 4-D (K, {channels}, 1, 1), got {tuple(weight.shape)}")
    call.floating("weight", weight, (weight.shape[0], channels, 1, 1))
    return weight.shape[0]


def _describe_gram(z, in_scale, in_shift, weight, stride):
    checks.feature_map("gram", "z", z)
    call = checks.Arguments("gram", "z", z)
    channels, sums = z.shape[1], torch.float64
    call.prologue(channels, in_scale, in_shift)
    if weight is not None:
        _pointwise(call, weight, channels)
    call.at_least(1, stride=stride)
    return [
        Output((channels,), checks.wide_dtype(z)),
        Output((channels,), sums),
        Output((channels, channels), sums),
    ], {}


_gram = register(
    "gram(Tensor z, Tensor? in_scale, Tensor? in_shift, Tensor? weight, int stride) -> (Tensor, Tensor, Tensor)",
    _describe_gram,
)


def gram(
    z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, weight: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum and the Gram matrix of `a' = prologue(z) - center` at every `stride`-th pixel.

    The centre is the mean of a first tile of pixels; in 16 bits only where that is more than four deviations from zero,
    else 0: there the raw value is exact and the rounded difference is not.  a' is rounded to z's dtype.

    For the filters of `weight` the sums are as good as they need be: where the variance of one is small against what it
    cancels from, all are summed in float64, and the quadratic form `W gram W^T` is right to 2^-50 of what it cancels
    from.  Where none is, they may be float32 sums (bounded runs, added in a fixed order).  The reference always sums in
    float64; the kernels by a rule of `fused_resnet.backends.gram_check`, which is applied on the device and waits for
    nothing.  Of float64 maps, variances below 2^-50 of what they cancel from are lost.

    Args:
        z: (N, C, H, W), float16, bfloat16, float32 or float64.
        in_scale, in_shift: (C,) each, the norm prologue; or both None.
        weight: (K, C, 1, 1) in any floating dtype, of the convolution whose norm the sums are for; None where they are
            for nothing that cancels.

    Returns:
        `(center, total, gram)`: center (C,), wide, representable in z's dtype; `total = sum_p a'` (C,) and
        `gram = sum_p a' a'^T` (C, C) in float64.
    """
    return _gram(z, in_scale, in_shift, weight, stride)


def _describe_gram_finalize(center, total, gram, count, weight, bn_weight, bn_bias, eps):
    call = checks.Arguments("gram_finalize", "gram", gram)
    if center.dtype not in checks.WIDE:
        call.refuse(f"center must be float32 or float64, got {center.dtype}")
    if gram.dim() != 2 or gram.dtype not in checks.WIDE:
        call.refuse(f"gram must be (C, C) in float32 or float64, got {tuple(gram.shape)} in {gram.dtype}")
    channels = gram.shape[0]
    call.floating("gram", gram, (channels, channels))
    call.vectors(channels, center=center, total=total)
    call.at_least(0, count=count)
    filters = _pointwise(call, weight, channels)
    call.vectors(filters, bn_weight=bn_weight, bn_bias=bn_bias)
    return [Output((filters,), center.dtype)] * 5, {}


_gram_finalize = register(
    "gram_finalize(Tensor center, Tensor total, Tensor gram, SymInt count, Tensor weight, Tensor? bn_weight,"
    " Tensor? bn_bias, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _describe_gram_finalize,
)


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
    """The statistics of the batch norm after a 1x1 convolution, from the sums over the convolution's input.

    With the matrix W of weight: `mean = W (center + total / count)`,
    `var = rowsum((W (gram / count - total total^T / count^2)) o W)` (biased, at least 0), in float64, because the
    quadratic form cancels where channels are correlated; invstd, scale and shift as in `bn_finalize`.

    Args:
        center, total, gram: as `gram` returns them; those of several maps may be added where their centres agree.
        count: pixels that they are sums over.
        weight: (K, C, 1, 1) in any floating dtype.
        bn_weight, bn_bias: (K,) of any floating dtype; None stands for ones and zeros.

    Returns:
        `(mean, var, invstd, scale, shift)`, (K,) each, of center's dtype.
    """
    return _gram_finalize(center, total, gram, count, weight, bn_weight, bn_bias, eps)


def _describe_conv1x1(z, in_scale, in_shift, weight, scale, shift, residual, stride, residual_stride, act):
    op = "conv1x1_bn_add_act"
    checks.feature_map(op, "z", z)
    call = checks.Arguments(op, "z", z)
    n, channels, h, w = z.shape
    call.prologue(channels, in_scale, in_shift)
    call.alike("weight", weight)
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (channels, 1, 1):
        call.refuse(f"weight must be (K, {channels}, 1, 1), got {tuple(weight.shape)}")
    if len(stride) != 2 or min(stride) < 1:
        call.refuse(f"stride must be two integers of at least 1, got {list(stride)}")
    size = (n, weight.shape[0], output_extent(h, 1, stride[0], 0), output_extent(w, 1, stride[1], 0))
    call.vectors(size[1], scale=scale, shift=shift)
    call.residual(residual, size, residual_stride)
    checks.activation(op, act)
    return size, {"weight": weight, "stride": stride}


_conv1x1_bn_add_act = register(
    "conv1x1_bn_add_act(Tensor z, Tensor? in_scale, Tensor? in_shift, Tensor weight, Tensor scale, Tensor shift,"
    " Tensor? residual, int[2] stride, int residual_stride, str act) -> Tensor",
    _describe_conv1x1,
)


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
    """`y = act(scale * conv1x1(prologue(z), weight) + shift + shortcut(residual))`, rounded once.

    Args:
        z: (N, C, H, W).
        in_scale, in_shift: (C,) each, the norm prologue; or both None.
        weight: (K, C, 1, 1), of z's dtype.
        scale, shift: (K,), of the convolution's batch norm.
        residual: None; (N, K, P, Q); or an option-A shortcut's input, as in `fused_resnet.ops.conv_scale_shift_act`.
        stride: of the convolution.
        residual_stride: of the option-A shortcut; 1 otherwise.
        act: "relu" or "identity".

    Returns:
        (N, K, P, Q) of z's dtype.
    """
    return _conv1x1_bn_add_act(z, in_scale, in_shift, weight, scale, shift, residual, stride, residual_stride, act)


def _describe_gram_products(grad, out, z, in_scale, in_shift, center, weight, stride):
    op = "gram_products"
    checks.feature_map(op, "grad", grad)
    call = checks.Arguments(op, "grad", grad)
    call.feature_map("z", z)
    call.at_least(1, stride=stride)
    n, channels = z.shape[:2]
    filters = grad.shape[1]
    pixels = _strided(z.shape, stride)
    call.feature_map("grad", grad, (n, filters, *pixels))
    if out is not None:
        call.feature_map("out", out, grad.shape)
    call.prologue(channels, in_scale, in_shift)
    call.vectors(channels, center=center)
    call.alike("weight", weight)
    call.floating("weight", weight, (filters, channels))
    wide = checks.wide_dtype(grad)
    outputs = [Output((filters, channels), wide), Output((filters,), wide), Output((n, channels, *pixels), z.dtype)]
    return outputs, {"weight": weight, "stride": stride}


_gram_products = register(
    "gram_products(Tensor grad, Tensor? out, Tensor z, Tensor? in_scale, Tensor? in_shift, Tensor center,"
    " Tensor weight, int stride) -> (Tensor, Tensor, Tensor)",
    _describe_gram_products,
)


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
    """Both products of the gradient `g = grad * (out > 0)` in one read of it: `M = g^T a'` and `t = g (alpha W)`.

    `a' = prologue(z) - center` at every `stride`-th pixel, rounded to z's dtype.

    Args:
        grad: (N, K, P, Q), P and Q being ceil(H / stride) and ceil(W / stride).
        out: (N, K, P, Q), the activated output; or None: `g = grad`.
        z: (N, C, H, W), of grad's dtype.
        in_scale, in_shift: (C,) each, the norm prologue; or both None.
        center: (C,), from `gram`.
        weight: (K, C), `alpha W` in z's dtype.

    Returns:
        `(products, sum_g, t)`: products = M (K, C) and `sum_g = sum_p g` (K,), wide; t (N, C, P, Q) of z's dtype.
    """
    return _gram_products(grad, out, z, in_scale, in_shift, center, weight, stride)


def _describe_finish(t, z, in_scale, in_shift, center, quadratic, constant, below_mean):
    op = "gram_backward_finish"
    checks.feature_map(op, "t", t)
    call = checks.Arguments(op, "t", t)
    call.feature_map("z", z, t.shape)
    channels = t.shape[1]
    call.prologue(channels, in_scale, in_shift)
    call.vectors(channels, center=center, constant=constant, below_mean=below_mean)
    call.floating("quadratic", quadratic, (channels, channels))
    sums = Output((channels,), checks.wide_dtype(t))
    return [Output(tuple(t.shape), t.dtype), sums, sums], {}


_gram_backward_finish = register(
    "gram_backward_finish(Tensor t, Tensor z, Tensor? in_scale, Tensor? in_shift, Tensor center, Tensor quadratic,"
    " Tensor constant, Tensor below_mean) -> (Tensor, Tensor, Tensor)",
    _describe_finish,
)


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
    """The gradient before the norm prologue: `da = t + a' quadratic + constant`, `g = da * (prologue(z) > 0)`.

    `a' = prologue(z) - center`, rounded to z's dtype; without a prologue `g = da`.

    Args:
        t: (N, C, P, Q), from `gram_products`.
        z: (N, C, P, Q), of t's dtype: what gram_products read, at its stride.
        in_scale, in_shift: (C,) each, the norm prologue; or both None.
        center: (C,), from `gram`.
        quadratic: (C, C), `W^T beta W`; a backend may round it to t's dtype.
        constant: (C,), `W^T kappa`.
        below_mean: (C,), the mean of z's norm.

    Returns:
        `(g, sum_g, sum_gz)`: g (N, C, P, Q) of t's dtype; `sum_g = sum_p g` and `sum_gz = sum_p g * (z - below_mean)`,
        (C,) each, wide.
    """
    return _gram_backward_finish(t, z, in_scale, in_shift, center, quadratic, constant, below_mean)
