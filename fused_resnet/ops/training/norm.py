"""Batch norm without its convolution: statistics, their merging, and one pass forward or backward over the map."""

from __future__ import annotations

from torch import Tensor

from ..library import Output, register
from . import checks


def _describe_channel_stats(z):
    checks.feature_map("channel_stats", "z", z)
    n, k, p, q = z.shape
    return [Output((checks.tiles(n, p, q), 3, k), checks.wide_dtype(z))], {}


_channel_stats = register("channel_stats(Tensor z) -> Tensor", _describe_channel_stats)


def channel_stats(z: Tensor) -> Tensor:
    """The partials of a map, for convolutions whose own epilogue does not leave them (grouped and dilated ones).

    Args:
        z: (N, K, P, Q), float16, bfloat16, float32 or float64.

    Returns:
        Partials, (ceil(N * P * Q / 128), 3, K), wide; see `fused_resnet.ops.training`.
    """
    return _channel_stats(z)


def _describe_bn_finalize(partials, bn_weight, bn_bias, eps):
    call = checks.Arguments("bn_finalize", "partials", partials)
    if partials.dim() != 3 or partials.shape[1] != 3:
        call.refuse(f"partials must be (tiles, 3, K), got {tuple(partials.shape)}")
    if partials.dtype not in checks.WIDE:
        call.refuse(f"partials must be float32 or float64, got {partials.dtype}")
    channels = partials.shape[2]
    call.vectors(channels, bn_weight=bn_weight, bn_bias=bn_bias)
    return [Output((channels,), partials.dtype)] * 5, {}


_bn_finalize = register(
    "bn_finalize(Tensor partials, Tensor? bn_weight, Tensor? bn_bias, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _describe_bn_finalize,
)


def bn_finalize(
    partials: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A batch norm's statistics from partials, merged as a binary tree over the rows (Chan, Golub and LeVeque 1983).

    `var = M2 / count` (biased), `invstd = 1 / sqrt(var + eps)`, `scale = bn_weight * invstd`,
    `shift = bn_bias - mean * scale` (Ioffe and Szegedy 2015, algorithm 1).  The order is fixed: the same partials give
    the same bits.  Rows of count 0 change nothing; of nothing at all, mean and variance are 0.

    Args:
        partials: (tiles, 3, K), float32 or float64; those of several maps may be concatenated.
        bn_weight, bn_bias: (K,) of any floating dtype; None stands for ones and zeros.

    Returns:
        `(mean, var, invstd, scale, shift)`, (K,) each, of partials' dtype.
    """
    return _bn_finalize(partials, bn_weight, bn_bias, eps)


def _describe_bn_add_act(z, scale, shift, residual, residual_stride, act):
    checks.feature_map("bn_add_act", "z", z)
    call = checks.Arguments("bn_add_act", "z", z)
    call.vectors(z.shape[1], scale=scale, shift=shift)
    call.residual(residual, z.shape, residual_stride)
    checks.activation("bn_add_act", act)
    return tuple(z.shape), {}


_bn_add_act = register(
    "bn_add_act(Tensor z, Tensor scale, Tensor shift, Tensor? residual, int residual_stride, str act) -> Tensor",
    _describe_bn_add_act,
)


def bn_add_act(
    z: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, residual_stride: int, act: str
) -> Tensor:
    """`y = act(z * scale + shift + shortcut(residual))`, computed wide and rounded once.

    Args:
        z: (N, K, P, Q).
        scale, shift: (K,).
        residual: None; (N, K, P, Q); or an option-A shortcut's input, as in `fused_resnet.ops.conv_scale_shift_act`.
        residual_stride: that shortcut's stride; 1 otherwise.
        act: "relu" or "identity".

    Returns:
        (N, K, P, Q) of z's dtype.
    """
    return _bn_add_act(z, scale, shift, residual, residual_stride, act)


def _describe_bn_backward_apply(g, z, a, b, c):
    checks.feature_map("bn_backward_apply", "g", g)
    checks.Arguments("bn_backward_apply", "g", g).bn_backward(g, z, a, b, c)
    return tuple(g.shape), {}


_bn_backward_apply = register(
    "bn_backward_apply(Tensor g, Tensor? z, Tensor a, Tensor? b, Tensor? c) -> Tensor", _describe_bn_backward_apply
)


def bn_backward_apply(g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> Tensor:
    """`dz = a * g + b * z + c`, for convolutions whose own prologue does not make it (grouped and dilated ones).

    Args:
        g: (N, K, P, Q), the masked gradient of a batch norm's output.
        z: (N, K, P, Q), its input; may be None where b and c are.
        a, b, c: (K,) each, its backward; b and c both None for constant statistics.

    Returns:
        (N, K, P, Q) of g's dtype.
    """
    return _bn_backward_apply(g, z, a, b, c)


def _describe_bn_act_backward(grad, out, z, mean):
    checks.feature_map("bn_act_backward", "grad", grad)
    call = checks.Arguments("bn_act_backward", "grad", grad)
    call.feature_map("z", z, grad.shape)
    if out is not None:
        call.feature_map("out", out, grad.shape)
    channels = grad.shape[1]
    call.vectors(channels, mean=mean)
    sums = Output((channels,), checks.wide_dtype(grad))
    return [Output(tuple(grad.shape), grad.dtype), sums, sums], {}


_bn_act_backward = register(
    "bn_act_backward(Tensor grad, Tensor? out, Tensor z, Tensor mean) -> (Tensor, Tensor, Tensor)",
    _describe_bn_act_backward,
)


def bn_act_backward(grad: Tensor, out: Tensor | None, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`g = grad * (out > 0)` and the sums that a batch norm's backward needs, in one pass.

    Args:
        grad: (N, K, P, Q), the gradient of the activated output.
        out: that output, or None for an identity: `g = grad`.
        z: (N, K, P, Q), the norm's input.
        mean: (K,).

    Returns:
        `(g, sum_g, sum_gz)`: g (N, K, P, Q) of grad's dtype; `sum_g = sum_p g` and `sum_gz = sum_p g * (z - mean)`,
        (K,) each, wide.
    """
    return _bn_act_backward(grad, out, z, mean)
