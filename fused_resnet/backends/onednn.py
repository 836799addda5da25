"""float32 on a CPU through oneDNN, PyTorch's own CPU convolution library.

Live models: the batch norm goes into the filters and the bias of the convolution where that costs less than a pass over
the output, and the residual is added by the convolution's own epilogue.  ReLU stays a pass of its own, because oneDNN's
turns NaN into 0.  Frozen models (`PackedConv`) have their filters folded and packed once, and use oneDNN's ReLU
where no NaN can arise.

The fused primitives are private to torch (`torch.ops.mkldnn`); where a build lacks them this backend says so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import output_extent
from . import reference
from .reference import global_avg_pool, option_a_shortcut  # noqa: F401 - nothing to fuse: torch's own are this backend's
from .reference.parts import shortcut

OPS = frozenset(("conv_scale_shift_act", "conv_bn_relu_maxpool", "global_avg_pool", "option_a_shortcut"))

# Folding reads and writes the filters once; not folding reads and writes the output once more.  Folding must save at
# least this many elements' worth of that, to be worth the half dozen small ops that it takes.
_FOLD_SAVES = 100_000


def unavailable_reason() -> str | None:
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN (torch.backends.mkldnn.is_available() is False)"
    if not torch.backends.mkldnn.enabled:
        return "oneDNN is switched off (torch.backends.mkldnn.enabled is False)"
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return "this build of torch has no fused oneDNN convolution (torch.ops.mkldnn._convolution_pointwise)"
    return None


def unsupported_reason(op: str, x: Tensor, weight: Tensor | None = None, **arguments) -> str | None:
    if op not in OPS:
        return f"it runs inference only, {op} belongs to training"
    if x.device.type != "cpu":
        return f"it runs on the CPU, x is on {x.device}"
    if x.dtype != torch.float32:
        return f"it takes float32, x is {str(x.dtype).removeprefix('torch.')}"
    return None


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
    """`act(conv(x, weight) * scale + shift + shortcut(residual))`; see `fused_resnet.ops.conv_scale_shift_act`."""
    geometry = (stride, padding, dilation, groups)
    if residual is not None:
        residual = shortcut(residual, weight.shape[0], residual_stride)
    if running_var is None and bn_weight is None:
        y = _convolve(x, weight, bn_bias, residual, *geometry)
    elif _output_elements(x, weight, *geometry[:3]) - weight.numel() >= _FOLD_SAVES:
        scale, shift = reference.scale_and_shift(
            weight.shape[0], bn_weight, bn_bias, running_mean, running_var, eps, x.dtype, x.device
        )
        y = _convolve(x, weight * scale.view(-1, 1, 1, 1), shift, residual, *geometry)
    else:
        z = F.conv2d(x, weight, None, *geometry)
        y = reference.normalize(z, bn_weight, bn_bias, running_mean, running_var, eps)
        if residual is not None:
            y.add_(residual)
    return y.relu_() if act == "relu" else y


def _output_elements(x: Tensor, weight: Tensor, stride, padding, dilation) -> int:
    p, q = (output_extent(x.shape[i], weight.shape[i], stride[i - 2], padding[i - 2], dilation[i - 2]) for i in (2, 3))
    return x.shape[0] * weight.shape[0] * p * q


def _is_nchw_and_nhwc(y: Tensor) -> bool:
    """Whether a map of this shape is dense in both layouts: to such, torch 2.11's fused addition fails in channels_last
    with "could not create a memory"."""
    return y.shape[1] == 1 or y.shape[2:] == (1, 1)


def _convolve(x, weight, bias, residual, stride, padding, dilation, groups) -> Tensor:
    """Convolution + bias + residual; always a fresh tensor."""
    if residual is None or _is_nchw_and_nhwc(residual):
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return y if residual is None else y.add_(residual)
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, residual, weight, bias, padding, stride, dilation, groups, "add", 1.0, None, [], None
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
    """A ResNet's stem; see `fused_resnet.ops.conv_bn_relu_maxpool`."""
    y = conv_scale_shift_act(
        x, weight, bn_weight, bn_bias, running_mean, running_var, eps, stride=stride, padding=padding
    )
    return F.max_pool2d(y, pool_kernel, pool_stride, pool_padding)


def pack(weight: Tensor, input_size: torch.Size, stride, padding, dilation, groups: int) -> Tensor:
    """`weight` in the blocked layout that oneDNN's convolution wants for inputs of `input_size`: an opaque tensor."""
    return torch._C._nn.mkldnn_reorder_conv2d_weight(
        weight.to_mkldnn(), padding, stride, dilation, groups, list(input_size)
    )


def packed_conv(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    stride,
    padding,
    dilation,
    groups: int,
    residual: Tensor | None,
    residual_stride: int,
    act: str,
    nan_free: bool,
    overwrite: bool,
) -> Tensor:
    """`act(conv(x) + bias + shortcut(residual))` with filters from `pack`, as one primitive.

    oneDNN's ReLU is used only when `nan_free` promises that it meets no NaN, which it would turn into 0.  With
    `overwrite` the result takes the residual's memory: touching fresh pages costs as much as the addition.
    """
    fused_relu = act == "relu" and nan_free
    tail = (padding, stride, dilation, groups)
    if residual is None:
        attribute = "relu" if fused_relu else "none"
        y = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *tail, attribute, [], "")
    else:
        added = shortcut(residual, packed.shape[0], residual_stride)
        in_place = overwrite or added is not residual
        if not in_place and _is_nchw_and_nhwc(added):
            y = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *tail, "none", [], "").add_(added)
            return y.relu_() if act == "relu" else y
        convolve = torch.ops.mkldnn._convolution_pointwise_ if in_place else torch.ops.mkldnn._convolution_pointwise
        operands = (added, x) if in_place else (x, added)
        y = convolve.binary(*operands, packed, bias, *tail, "add", 1.0, "relu" if fused_relu else None, [], None)
    return y.relu_() if act == "relu" and not fused_relu else y
