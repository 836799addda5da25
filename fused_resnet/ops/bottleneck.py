"""A whole bottleneck block in inference as one op, for backends that keep its inner maps on the chip."""

from __future__ import annotations

from torch import Tensor

from ..errors import ArgumentError
from . import checks
from .library import register

_OP = "bottleneck_inference"


def _conv(x: Tensor, name: str, weight: Tensor, vectors: tuple[Tensor, Tensor], kernel: int, stride: int):
    """The size of one convolution's output, its arguments checked."""
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (kernel, kernel):
        raise ArgumentError(f"{_OP}: {name} must be (K, C, {kernel}, {kernel}), got {tuple(weight.shape)}")
    padding = kernel // 2
    shape = checks.convolution(_OP, x, weight, (stride, stride), (padding, padding), (1, 1), 1)
    checks.batch_norm_vectors(_OP, x, shape.k, *vectors, None, None)
    return shape.n, shape.k, shape.p, shape.q


def _describe(
    x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3, downsample, downsample_scale,
    downsample_shift, stride,
):  # fmt: skip
    if stride < 1:
        raise ArgumentError(f"{_OP}: stride must be at least 1, got {stride}")
    size = _conv(x, "weight1", weight1, (scale1, shift1), 1, 1)
    size = _conv(x.new_empty(()).expand(size), "weight2", weight2, (scale2, shift2), 3, stride)
    size = _conv(x.new_empty(()).expand(size), "weight3", weight3, (scale3, shift3), 1, 1)
    given = [tensor is not None for tensor in (downsample, downsample_scale, downsample_shift)]
    if any(given) != all(given):
        raise ArgumentError(f"{_OP}: downsample, its scale and its shift belong together; pass all or none")
    residual = tuple(x.shape)
    if all(given):
        residual = _conv(x, "downsample", downsample, (downsample_scale, downsample_shift), 1, stride)
    if residual != size:
        raise ArgumentError(f"{_OP}: the shortcut gives {residual}, the branch {size}; pass a downsample that fits")
    return size, {"weight": weight2, "stride": (stride, stride), "projected": all(given)}


_bottleneck_inference = register(
    f"{_OP}(Tensor x, Tensor weight1, Tensor scale1, Tensor shift1, Tensor weight2, Tensor scale2, Tensor shift2,"
    " Tensor weight3, Tensor scale3, Tensor shift3, Tensor? downsample, Tensor? downsample_scale,"
    " Tensor? downsample_shift, int stride) -> Tensor",
    _describe,
)


def bottleneck_inference(
    x: Tensor,
    weight1: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    weight2: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    weight3: Tensor,
    scale3: Tensor,
    shift3: Tensor,
    downsample: Tensor | None,
    downsample_scale: Tensor | None,
    downsample_shift: Tensor | None,
    stride: int,
) -> Tensor:
    """`relu(n3(conv1x1(relu(n2(conv3x3(relu(n1(conv1x1(x)))))))) + shortcut(x))` (He et al. 2015, figure 5 right).

    `n(z) = z * scale + shift` per filter, in float32; the two inner maps are rounded to x's dtype.

    Args:
        x: (N, C_in, H, W), floating point.
        weight1: (C, C_in, 1, 1); weight2: (C, C, 3, 3), padded by 1; weight3: (K, C, 1, 1); of x's dtype.
        downsample: (K, C_in, 1, 1), the projection on the shortcut; None for an identity.
        scale1 to downsample_shift: one number a filter, of any floating dtype.
        stride: of weight2 and of downsample.

    Returns:
        (N, K, ceil(H / stride), ceil(W / stride)) of x's dtype.

    Raises:
        ArgumentError: shapes, dtypes or devices that do not go together; nothing has run.
        BackendError: the backend asked for by name cannot take this call.
    """
    return _bottleneck_inference(
        x, weight1, scale1, shift1, weight2, scale2, shift2, weight3, scale3, shift3, downsample, downsample_scale,
        downsample_shift, stride,
    )  # fmt: skip
