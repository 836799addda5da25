"""Convolutions in training: forward with a norm prologue and statistics, and their two gradients."""

from __future__ import annotations

from torch import Tensor

from ..checks import convolution
from ..library import Output, register
from . import checks


def _describe_conv_stats(x, weight, in_scale, in_shift, stride, padding, dilation, groups):
    op = "conv_stats"
    shape = convolution(op, x, weight, stride, padding, dilation, groups)
    checks.Arguments(op, "x", x).prologue(shape.c, in_scale, in_shift)
    outputs = [
        Output((shape.n, shape.k, shape.p, shape.q), x.dtype),
        Output((checks.tiles(shape.n, shape.p, shape.q), 3, shape.k), checks.wide_dtype(x)),
    ]
    return outputs, {"weight": weight, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


_conv_stats = register(
    "conv_stats(Tensor x, Tensor weight, Tensor? in_scale, Tensor? in_shift, int[2] stride, int[2] padding,"
    " int[2] dilation, int groups) -> (Tensor, Tensor)",
    _describe_conv_stats,
)


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
    """`z = conv(prologue(x), weight)` and the statistics of z, as rounded, for its batch norm.

    Args:
        x: (N, C, H, W), float16, bfloat16, float32 or float64.
        weight: (K, C / groups, R, S), of x's dtype.
        in_scale, in_shift: (C,) each, the norm prologue of x; or both None.

    Returns:
        `(z, partials)`: z (N, K, P, Q) of x's dtype, channels_last if x or weight is; partials
        (ceil(N * P * Q / 128), 3, K), wide.  See `fused_resnet.ops.training` for prologue and partials.
    """
    return _conv_stats(x, weight, in_scale, in_shift, stride, padding, dilation, groups)


def _describe_conv_dgrad(
    g, z, a, b, c, weight, input_size, stride, padding, below_z, below_scale, below_shift, below_mean, skip, skip_out
):
    checks.feature_map("conv_dgrad", "g", g)
    call = checks.Arguments("conv_dgrad", "g", g)
    call.bn_backward(g, z, a, b, c)
    call.alike("weight", weight)
    shape = call.convolution(input_size, weight.shape, stride, padding, g)
    for name, tensor in (("below_z", below_z), ("skip", skip), ("skip_out", skip_out)):
        if tensor is not None:
            call.feature_map(name, tensor, tuple(input_size))
    if skip_out is not None and skip is None:
        call.refuse("skip_out is given without the skip that it masks; pass skip")
    call.vectors(shape.c, below_scale=below_scale, below_shift=below_shift, below_mean=below_mean)
    call.together(below_z=below_z, below_scale=below_scale, below_shift=below_shift, below_mean=below_mean)
    sums = Output((0 if below_z is None else shape.c,), checks.wide_dtype(g))
    return [Output(tuple(input_size), g.dtype), sums, sums], {"weight": weight, "stride": stride, "padding": padding}


_conv_dgrad = register(
    "conv_dgrad(Tensor g, Tensor? z, Tensor a, Tensor? b, Tensor? c, Tensor weight, SymInt[] input_size,"
    " int[2] stride, int[2] padding, Tensor? below_z, Tensor? below_scale, Tensor? below_shift, Tensor? below_mean,"
    " Tensor? skip, Tensor? skip_out) -> (Tensor, Tensor, Tensor)",
    _describe_conv_dgrad,
)


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
    skip: Tensor | None,
    skip_out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution's input gradient, from before its own batch norm to before the one below.

    `dz = a * g + b * z + c`, `dx = conv_transpose(dz, weight)`; with a skip, `dx += skip * (skip_out > 0)`, or `skip`
    where skip_out is None; with a norm below, `dx *= (below_z * below_scale + below_shift > 0)`.  All of it wide; dx is
    rounded once.  Groups and dilation are left to ATen's own convolution.

    Args:
        g: (N, K, P, Q), the masked gradient of the output of the convolution's batch norm.
        z: (N, K, P, Q), the convolution's output; may be None where b and c are.
        a, b, c: (K,) each, the batch norm's backward; b and c both None for constant statistics.
        weight: (K, C, R, S), of g's dtype.
        input_size: N, C, H, W.
        below_z: (N, C, H, W), the raw map whose norm and ReLU made the convolution's input; None where that input was
            used as it is.
        below_scale, below_shift, below_mean: (C,) each, of that norm; None with below_z.
        skip: (N, C, H, W), added to dx, or None.
        skip_out: (N, C, H, W), masks skip; or None.

    Returns:
        `(dx, sum_g, sum_gz)`: dx (N, C, H, W) of g's dtype; `sum_g = sum_p dx`,
        `sum_gz = sum_p dx * (below_z - below_mean)`, (C,) each, wide; or of shape (0,) without a norm below.
    """
    return _conv_dgrad(
        g, z, a, b, c, weight, input_size, stride, padding, below_z, below_scale, below_shift, below_mean, skip,
        skip_out,
    )  # fmt: skip


def _describe_conv_wgrad(g, z, a, b, c, x, in_scale, in_shift, weight_size, stride, padding):
    checks.feature_map("conv_wgrad", "g", g)
    call = checks.Arguments("conv_wgrad", "g", g)
    call.bn_backward(g, z, a, b, c)
    call.feature_map("x", x)
    call.prologue(x.shape[1], in_scale, in_shift)
    call.convolution(x.shape, weight_size, stride, padding, g)
    return [Output(tuple(weight_size), checks.wide_dtype(g))], {"stride": stride, "padding": padding}


_conv_wgrad = register(
    "conv_wgrad(Tensor g, Tensor? z, Tensor a, Tensor? b, Tensor? c, Tensor x, Tensor? in_scale, Tensor? in_shift,"
    " SymInt[] weight_size, int[2] stride, int[2] padding) -> Tensor",
    _describe_conv_wgrad,
)


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
    """A convolution's weight gradient: `dW = correlate(a * g + b * z + c, prologue(x))`, never rounded.

    Args:
        g, z, a, b, c: as in `conv_dgrad`.
        x: (N, C, H, W), the map that the convolution read, of g's dtype.
        in_scale, in_shift: (C,) each, the norm prologue that it read it through; or both None.
        weight_size: K, C, R, S; without groups.

    Returns:
        (K, C, R, S), wide; channels_last if g is.
    """
    return _conv_wgrad(g, z, a, b, c, x, in_scale, in_shift, weight_size, stride, padding)
