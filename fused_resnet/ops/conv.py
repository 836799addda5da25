"""Convolutions with a fused epilogue, and the parameter-free shortcut that the epilogue can add."""

from __future__ import annotations

from torch import Tensor

from ..errors import ArgumentError
from ..shapes import output_extent
from . import checks
from .library import register

_BN_SCHEMA = (
    "Tensor x, Tensor weight, Tensor? bn_weight, Tensor? bn_bias, Tensor? running_mean, Tensor? running_var, float eps"
)


def _describe_conv(
    x, weight, bn_weight, bn_bias, running_mean, running_var, eps, residual, stride, padding, dilation, groups,
    residual_stride, act,
):  # fmt: skip
    op = "conv_scale_shift_act"
    shape = checks.convolution(op, x, weight, stride, padding, dilation, groups)
    checks.batch_norm_vectors(op, x, shape.k, bn_weight, bn_bias, running_mean, running_var)
    checks.residual_map(op, x, residual, shape, residual_stride)
    checks.activation(op, act)
    deciding = {"weight": weight, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (shape.n, shape.k, shape.p, shape.q), deciding


_conv_scale_shift_act = register(
    f"conv_scale_shift_act({_BN_SCHEMA}, Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, int groups,"
    " int residual_stride, str act) -> Tensor",
    _describe_conv,
)


def conv_scale_shift_act(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual_stride: int = 1,
    act: str = "relu",
) -> Tensor:
    """Convolution, batch norm in inference, skip-add and activation in one op.

    `y = act(conv(x, weight) * scale + shift + shortcut(residual))` with, per filter and in float32 (float64 for
    float64), `scale = bn_weight / sqrt(running_var + eps)` and `shift = bn_bias - running_mean * scale`
    (Ioffe and Szegedy 2015, algorithm 2), computed from the vectors as they are at the time of the call.

    Args:
        x: (N, C, H, W), float16, bfloat16, float32 or float64; any strides, N may be 0.
        weight: (K, C / groups, R, S), of x's dtype.
        bn_weight, bn_bias: (K,) of any floating dtype; None stands for ones and zeros.
        running_mean, running_var: (K,) each, or both None, when scale and shift are bn_weight and bn_bias themselves.
        residual: of x's dtype; (N, K, P, Q), or an option-A shortcut's input (He et al. 2015, section 3.3):
            fewer channels, or subsampled by `residual_stride`, as `option_a_shortcut` would make it fit.
        act: "relu" or "identity".

    Returns:
        (N, K, P, Q) of x's dtype; channels_last if x or weight is, else contiguous.

    Raises:
        ArgumentError: shapes, dtypes or devices that do not go together; nothing has run.
        BackendError: the backend asked for by name cannot take this call.
    """
    return _conv_scale_shift_act(
        x, weight, bn_weight, bn_bias, running_mean, running_var, eps, residual, stride, padding, dilation, groups,
        residual_stride, act,
    )  # fmt: skip


def _describe_option_a(x, out_channels, stride):
    op = "option_a_shortcut"
    checks.feature_map(op, "x", x)
    if out_channels < x.shape[1]:
        raise ArgumentError(f"{op}: out_channels must be at least the {x.shape[1]} channels of x, got {out_channels}")
    if stride < 1:
        raise ArgumentError(f"{op}: stride must be at least 1, got {stride}")
    n, _, h, w = x.shape
    return (n, out_channels, output_extent(h, 1, stride, 0), output_extent(w, 1, stride, 0)), {}


_option_a_shortcut = register("option_a_shortcut(Tensor x, int out_channels, int stride) -> Tensor", _describe_option_a)


def option_a_shortcut(x: Tensor, out_channels: int, stride: int) -> Tensor:
    """The parameter-free shortcut: every `stride`-th pixel of x, its channels padded with zeros.

    Option A of He et al. 2015 (section 3.3); `(out_channels - C) // 2` zero channels lie below x's and the rest above.

    Args:
        x: (N, C, H, W), floating point.
        out_channels: at least C.
        stride: at least 1.

    Returns:
        (N, out_channels, ceil(H / stride), ceil(W / stride)) of x's dtype.

    Raises:
        ArgumentError: x is no feature map, or the numbers are out of range.
    """
    return _option_a_shortcut(x, out_channels, stride)


def _describe_stem(
    x, weight, bn_weight, bn_bias, running_mean, running_var, eps, stride, padding, pool_kernel, pool_stride,
    pool_padding,
):  # fmt: skip
    op = "conv_bn_relu_maxpool"
    shape = checks.convolution(op, x, weight, stride, padding, (1, 1), 1)
    checks.batch_norm_vectors(op, x, shape.k, bn_weight, bn_bias, running_mean, running_var)
    if pool_kernel < 1 or pool_stride < 1 or not 0 <= pool_padding <= pool_kernel // 2:
        raise ArgumentError(
            f"{op}: pool_kernel and pool_stride must be at least 1 and pool_padding at most half the kernel,"
            f" got {pool_kernel}, {pool_stride} and {pool_padding}"
        )
    p, q = (output_extent(extent, pool_kernel, pool_stride, pool_padding) for extent in (shape.p, shape.q))
    if p < 1 or q < 1:
        raise ArgumentError(
            f"{op}: the convolution leaves {shape.p} x {shape.q} pixels, smaller than the pooling window of"
            f" {pool_kernel}; give a larger image"
        )
    return (shape.n, shape.k, p, q), {"weight": weight, "stride": stride, "padding": padding}


_conv_bn_relu_maxpool = register(
    f"conv_bn_relu_maxpool({_BN_SCHEMA}, int[2] stride, int[2] padding, int pool_kernel, int pool_stride,"
    " int pool_padding) -> Tensor",
    _describe_stem,
)


def conv_bn_relu_maxpool(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    eps: float = 0.0,
    stride: tuple[int, int] = (2, 2),
    padding: tuple[int, int] = (3, 3),
    pool_kernel: int = 3,
    pool_stride: int = 2,
    pool_padding: int = 1,
) -> Tensor:
    """A ResNet's stem: `maxpool(relu(conv(x, weight) * scale + shift))`.

    Arguments and errors as `conv_scale_shift_act`; the pooling window is square and padded with minus infinity.

    Returns:
        (N, K, P', Q') of x's dtype, P' and Q' after pooling; channels_last if x or weight is, else contiguous.
    """
    return _conv_bn_relu_maxpool(
        x, weight, bn_weight, bn_bias, running_mean, running_var, eps, stride, padding, pool_kernel, pool_stride,
        pool_padding,
    )  # fmt: skip
