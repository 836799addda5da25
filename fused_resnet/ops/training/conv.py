"""Convolutions in training: forward with a norm prologue and statistics, and their two gradients."""

from __future__ import annotations

from torch import Tensor

from ..checks import convolution
from ..library import Output, register
from . import checks

ONE_READ_FILTERS = 256  # of a 1x1 convolution whose two gradients one kernel can make


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
    g, z, a, b, c, weight, input_size, stride, padding, below_z, below_scale, below_shift, below_mean, below_out,
    skip, skip_out, skip_stride,
):  # fmt: skip
    checks.feature_map("conv_dgrad", "g", g)
    call = checks.Arguments("conv_dgrad", "g", g)
    call.bn_backward(g, z, a, b, c)
    call.alike("weight", weight)
    shape = call.convolution(input_size, weight.shape, stride, padding, g)
    for name, tensor in (("below_z", below_z), ("below_out", below_out)):
        if tensor is not None:
            call.feature_map(name, tensor, tuple(input_size))
    call.skip(input_size, skip, skip_out, skip_stride)
    call.vectors(shape.c, below_scale=below_scale, below_shift=below_shift, below_mean=below_mean)
    call.together(below_z=below_z, below_mean=below_mean)
    if below_out is None:
        call.together(below_z=below_z, below_scale=below_scale, below_shift=below_shift)
    elif below_scale is not None or below_shift is not None:
        call.refuse("below_out masks in the place of below_scale and below_shift; pass either it or them")
    sums = Output((0 if below_z is None else shape.c,), checks.wide_dtype(g))
    return [Output(tuple(input_size), g.dtype), sums, sums], {"weight": weight, "stride": stride, "padding": padding}


_conv_dgrad = register(
    "conv_dgrad(Tensor g, Tensor? z, Tensor a, Tensor? b, Tensor? c, Tensor weight, SymInt[] input_size,"
    " int[2] stride, int[2] padding, Tensor? below_z, Tensor? below_scale, Tensor? below_shift, Tensor? below_mean,"
    " Tensor? below_out, Tensor? skip, Tensor? skip_out, int skip_stride) -> (Tensor, Tensor, Tensor)",
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
    below_out: Tensor | None,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution's input gradient, from before its own batch norm to before what is below.

    `dz = a * g + b * z + c`, `dx = conv_transpose(dz, weight)`; with a skip, every skip_stride-th pixel of dx gets
    `+= skip * (skip_out > 0)`, or `skip` where skip_out is None; with a norm below,
    `dx *= (below_z * below_scale + below_shift > 0)`; with a block below, `dx *= (below_out > 0)`.  All of it wide; dx
    is rounded once.  Groups and dilation are left to ATen's own convolution.

    Args:
        g: (N, K, P, Q), the masked gradient of the output of the convolution's batch norm.
        z: (N, K, P, Q), the convolution's output; may be None where b and c are.
        a, b, c: (K,) each, the batch norm's backward; b and c both None for constant statistics.
        weight: (K, C, R, S), of g's dtype.
        input_size: N, C, H, W.
        below_z: (N, C, H, W), the raw map whose norm comes last below dx; None where its sums are not wanted.
        below_mean: (C,), of that norm; None with below_z.
        below_scale, below_shift: (C,) each, of that norm, where only a ReLU lies between it and dx; else None.
        below_out: (N, C, H, W), the output of the block below, whose last ReLU masks dx; or None.
        skip: (N, C, ceil(H / skip_stride), ceil(W / skip_stride)), added to dx, or None.
        skip_out: of skip's size, masks it; or None.
        skip_stride: 1, or the stride of the shortcut that skip comes from.

    Returns:
        `(dx, sum_g, sum_gz)`: dx (N, C, H, W) of g's dtype; `sum_g = sum_p dx`,
        `sum_gz = sum_p dx * (below_z - below_mean)`, (C,) each, wide; or of shape (0,) without below_z.
    """
    return _conv_dgrad(
        g, z, a, b, c, weight, input_size, stride, padding, below_z, below_scale, below_shift, below_mean, below_out,
        skip, skip_out, skip_stride,
    )  # fmt: skip


def _describe_conv1x1_backward(g, z, a, b, c, weight, x, rectified, skip, skip_out, skip_stride):
    op = "conv1x1_backward"
    checks.feature_map(op, "g", g)
    call = checks.Arguments(op, "g", g)
    call.bn_backward(g, z, a, b, c)
    call.alike("weight", weight)
    call.feature_map("x", x)
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (1, 1) or weight.shape[0] > ONE_READ_FILTERS:
        call.refuse(f"weight must be (K, C, 1, 1) with K at most {ONE_READ_FILTERS}, got {tuple(weight.shape)}")
    call.convolution(x.shape, weight.shape, (1, 1), (0, 0), g)
    call.skip(x.shape, skip, skip_out, skip_stride)
    return [Output(tuple(x.shape), g.dtype), Output(tuple(weight.shape), checks.wide_dtype(g))], {"weight": weight}


_conv1x1_backward = register(
    "conv1x1_backward(Tensor g, Tensor? z, Tensor a, Tensor? b, Tensor? c, Tensor weight, Tensor x, bool rectified,"
    " Tensor? skip, Tensor? skip_out, int skip_stride) -> (Tensor, Tensor)",
    _describe_conv1x1_backward,
)


def conv1x1_backward(
    g: Tensor,
    z: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    weight: Tensor,
    x: Tensor,
    rectified: bool,
    skip: Tensor | None,
    skip_out: Tensor | None,
    skip_stride: int,
) -> tuple[Tensor, Tensor]:
    """Both gradients of a 1x1 convolution from one read of every map: `conv_dgrad` and `conv_wgrad` at once.

    `dz = a * g + b * z + c`; `dW = dz^T x`; `dx = dz W`, to which the skip is added, masked by `x > 0` where
    `rectified`.  For a convolution of stride 1 that read x as it is; the K x C products are held beside the tile of dz,
    so that K is at most 256.

    Args:
        g, z, a, b, c: as in `conv_dgrad`.
        weight: (K, C, 1, 1), of g's dtype.
        x: (N, C, H, W), the convolution's input.
        rectified: x is the output of a ReLU, through which dx goes on.
        skip, skip_out, skip_stride: as in `conv_dgrad`.

    Returns:
        `(dx, dW)`: dx (N, C, H, W) of g's dtype; dW (K, C, 1, 1), wide, never rounded.
    """
    return _conv1x1_backward(g, z, a, b, c, weight, x, rectified, skip, skip_out, skip_stride)


def _describe_conv_wgrad(g, z, a, b, c, x, in_scale, in_shift, weight_size, stride, padding):
    checks.feature_map("conv_wgrad", "g", g)
    call = checks.Arguments("conv_wgrad", "g", g)
    call.bn_backward(g, z, a, b, c)
    call.feature_map("x", x)
    call.prologue(x.shape[1], in_scale, in_shift)
    call.convolution(x.shape, weight_size, stride, padding, g)
    deciding = {"weight_size": tuple(weight_size), "stride": stride, "padding": padding}
    return [Output(tuple(weight_size), checks.wide_dtype(g))], deciding


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
