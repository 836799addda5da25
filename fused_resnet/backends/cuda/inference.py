"""The ops of inference over the compiled kernels; see `fused_resnet.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shapes import output_extent
from ..reference import scale_and_shift, shortcut
from .launch import dense_nhwc, dense_or_none, map_like, nhwc, run, vector
from .pointwise import convolve_act

# conv3x3_halo normalises in packed 16-bit arithmetic the channels whose |in_shift / in_scale| is below this, in units
# of its input: faster, but scale and shift are rounded, which may err by more than torch does.  So none are.
PACKED_LIMIT = 0.0


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
    """`act(conv(x, weight) * scale + shift + shortcut(residual))`; see `fused_resnet.ops.conv_scale_shift_act`.

    Scale and shift are made of the live vectors by torch, an option-A shortcut is made a map of its own by torch.
    """
    k, pointwise = weight.shape[0], weight.shape[2:] == (1, 1)
    residual = None if residual is None else dense_or_none(shortcut(residual, k, residual_stride))
    vectors = (None, None)
    if pointwise or any(vector is not None for vector in (bn_weight, bn_bias, running_var)):
        bn = (bn_weight, bn_bias, running_mean, running_var, eps)
        vectors = scale_and_shift(k, *bn, torch.float32, x.device)
    if pointwise:
        return convolve_act(x, None, None, weight, *vectors, residual, stride[0], act == "relu")
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    p, q = (output_extent(extent, 3, stride[0], 1) for extent in x.shape[2:])
    y = map_like(x, (x.shape[0], k, p, q))
    vectors = tuple(None if vector is None else vector.contiguous() for vector in vectors)
    geometry = (x.dtype, *nhwc(x), stride[0], act == "relu")
    run("conv3x3_halo_act", x, weight, None, None, PACKED_LIMIT, *vectors, residual, y, *geometry)
    return y


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
    """A bottleneck whose inner maps stay in shared memory; see `fused_resnet.ops.bottleneck_inference`."""
    x = dense_nhwc(x)
    convolutions = (
        (weight1, scale1, shift1),
        (weight2, scale2, shift2),
        (weight3, scale3, shift3),
        (downsample, downsample_scale, downsample_shift),
    )
    operands = [t for weight, *norm in convolutions for t in (dense_or_none(weight), *map(vector, norm))]
    p, q = (output_extent(extent, 3, stride, 1) for extent in x.shape[2:])
    y = map_like(x, (x.shape[0], weight3.shape[0], p, q))
    run("bottleneck_inference", x, *operands, y, x.dtype, *nhwc(x), weight2.shape[0], stride)
    return y


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W, (N, C, 1, 1), accumulated in float32."""
    x = dense_nhwc(x)
    y = map_like(x, (x.shape[0], x.shape[1], 1, 1))
    run("global_avg_pool", x, y, x.dtype, *nhwc(x))
    return y
