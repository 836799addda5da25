"""The ops of inference over the compiled kernels; see `fused_resnet.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...shapes import output_extent
from ..reference import scale_and_shift
from ..reference.parts import shortcut
from . import images
from .availability import IMAGE_CHANNELS
from .conv1x1 import convolve_act, shared_tiles
from .launch import ask, dense_nhwc, dense_or_none, map_like, nhwc, run, vector, weights_ready

# conv3x3_halo normalises in packed 16-bit arithmetic the channels whose |in_shift / in_scale| is below this, in units
# of its input: faster, but scale and shift are rounded, which may err by more than torch does.  So none are.
PACKED_LIMIT = 0.0

HALO_SPLIT_PRODUCTS = 4096  # float32 a block leaves of a tile that it shares: csrc/kernels/conv3x3/split/launch.h


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
    of_images = weight.shape[1] == IMAGE_CHANNELS
    if pointwise or of_images or any(vector is not None for vector in (bn_weight, bn_bias, running_var)):
        bn = (bn_weight, bn_bias, running_mean, running_var, eps)
        vectors = scale_and_shift(k, *bn, torch.float32, x.device)
    if pointwise:
        return convolve_act(x, None, None, weight, *vectors, residual, stride[0], act == "relu")
    if of_images:
        return images.convolve_act(x, weight, *vectors, residual, act == "relu")
    return _convolve_3x3(x, weight, *map(vector, vectors), residual, stride[0], act == "relu")


def _convolve_3x3(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: int,
    relu: bool,
) -> Tensor:
    """`act(conv(x, weight) * scale + shift + residual)`; small tiles where large ones would leave the GPU idle."""
    ready = weights_ready(weight)
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    p, q = (output_extent(extent, 3, stride, 1) for extent in x.shape[2:])
    y = map_like(x, (x.shape[0], weight.shape[0], p, q))
    extents = (*nhwc(x), weight.shape[0], stride)
    outputs, tail = (scale, shift, residual, y), (x.dtype, *extents, relu, ready)
    splits = ask("conv3x3_halo_splits", x, *extents)
    if splits == 0:
        run("conv3x3_halo_act", x, weight, None, None, PACKED_LIMIT, *outputs, *tail)
    else:
        tiles = ask("conv3x3_halo_split_tiles", x, *extents)
        run("conv3x3_halo_split_act", x, weight, *outputs, *shared_tiles(x, tiles, splits, HALO_SPLIT_PRODUCTS), *tail)
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
    ready = weights_ready(*(weight for weight, *_ in convolutions))
    operands = [t for weight, *norm in convolutions for t in (dense_or_none(weight), *map(vector, norm))]
    p, q = (output_extent(extent, 3, stride, 1) for extent in x.shape[2:])
    y = map_like(x, (x.shape[0], weight3.shape[0], p, q))
    run("bottleneck_inference", x, *operands, y, x.dtype, *nhwc(x), weight2.shape[0], stride, ready)
    return y


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W, (N, C, 1, 1), accumulated in float32."""
    x = dense_nhwc(x)
    y = map_like(x, (x.shape[0], x.shape[1], 1, 1))
    run("global_avg_pool", x, y, x.dtype, *nhwc(x))
    return y
