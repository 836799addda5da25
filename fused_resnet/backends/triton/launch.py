"""From tensors to a launch and back: layouts made dense NHWC, outputs allocated, plans run.

Every kernel here reads and writes dense NHWC.  An input in another layout (NCHW, expanded, sliced) is copied into it
first, as is a filter that is not channels_last: call `model.to(memory_format=torch.channels_last)` once to avoid both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...shapes import ConvShape, output_extent, pair
from ...tuning import Choice
from . import plan
from .availability import architecture

Chooser = Callable[[int, str, ConvShape], Choice]


def dense_nhwc(tensor: Tensor) -> Tensor:
    """`tensor` (N, C, H, W) with its elements dense in the order NHWC: itself, or a copy."""
    return tensor.contiguous(memory_format=torch.channels_last)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as tuning knows it; float32 becomes "tfloat32" where torch lets cuDNN use tf32."""
    name = str(dtype).removeprefix("torch.")
    # `cudnn.allow_tf32` raises where only convolutions were told
    return "tfloat32" if name == "float32" and torch.backends.cudnn.conv.fp32_precision == "tf32" else name


def _vector_name(vector: Tensor | None) -> str | None:
    return None if vector is None else str(vector.dtype).removeprefix("torch.")


def _output(like: Tensor, size: tuple[int, int, int, int], out: Tensor | None) -> Tensor:
    if out is not None:
        return out
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def run(launch: plan.LaunchPlan, tensors: dict[str, Tensor | None]) -> None:
    """Launch a plan on `tensors`, one an argument, on their device and its current stream."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    from .kernels import KERNELS

    arguments = {name: tensors[name] for name in launch.pointers}
    for name, box in launch.boxes.items():
        arguments[name] = TensorDescriptor(tensors[name], list(box.shape), list(box.strides), list(box.block))
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    y = tensors["y_ptr"]
    with torch.cuda.device_of(y):
        KERNELS[launch.kernel][(launch.grid,)](**arguments, **launch.scalars, **launch.constexprs, **options)


def _epilogue(bn, eps: float, residual: Tensor | None, residual_stride: int, act: str):
    """The plan's description of the epilogue, and the tensors that go with it."""
    vectors = [None if vector is None else vector.contiguous() for vector in bn]
    residual = None if residual is None else dense_nhwc(residual)
    extents = None if residual is None else (residual.shape[1], residual.shape[2], residual.shape[3])
    stride = residual_stride if residual is not None else 1
    names = [_vector_name(vector) for vector in vectors]
    arguments = ("bn_weight_ptr", "bn_bias_ptr", "running_mean_ptr", "running_var_ptr")
    tensors = dict(zip(arguments, vectors, strict=True)) | {"residual_ptr": residual}
    return plan.Epilogue(*names, eps, extents, stride, act == "relu"), tensors


def conv(
    x: Tensor, weight: Tensor, bn, eps: float, residual: Tensor | None, stride, padding, dilation, groups: int,
    residual_stride: int, act: str, choose: Chooser, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """act(conv(x, weight) * scale + shift + shortcut(residual)), channels_last, by the algorithm that `choose` picks.

    Args:
        bn: (bn_weight, bn_bias, running_mean, running_var), each (K,) or None.
        choose: (arch, dtype name, shape) -> Choice.
        out: dense NHWC storage to write to, in the place of a new tensor.
    """
    shape = ConvShape.of(x, weight, pair(tuple(stride)), pair(tuple(padding)), pair(tuple(dilation)), groups)
    arch, dtype = architecture(x.device), dtype_name(x.dtype)
    choice = choose(arch, dtype, shape)
    x, weight = dense_nhwc(x), dense_nhwc(weight)
    epilogue, tensors = _epilogue(bn, eps, residual, residual_stride, act)
    if choice.algorithm == "aten" or groups != 1 or shape.dilation != (1, 1):
        z = dense_nhwc(F.conv2d(x, weight, None, shape.stride, shape.padding, shape.dilation, groups))
        launch = plan.plan_scale_shift_act(shape.n, shape.p, shape.q, shape.k, dtype, epilogue)
        y = z if out is None else out
        run(launch, tensors | {"z_ptr": z, "y_ptr": y})
        return y
    aligned = x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    launch = plan.plan_conv(shape, dtype, arch, choice, epilogue, aligned)
    y = _output(x, (shape.n, shape.k, shape.p, shape.q), out)
    operands = ("x_desc", "w_desc") if launch.boxes else ("x_ptr", "w_ptr")
    run(launch, tensors | dict(zip(operands, (x, weight), strict=True)) | {"y_ptr": y})
    return y


def max_pool(x: Tensor, kernel: int, stride: int, padding: int, out: Tensor | None = None) -> Tensor:
    """Max pooling of x (N, C, H, W) over square windows, channels_last."""
    x = dense_nhwc(x)
    n, c, h, w = x.shape
    launch = plan.plan_max_pool(n, h, w, c, kernel, stride, padding, dtype_name(x.dtype))
    y = _output(x, (n, c, launch.scalars["P"], launch.scalars["Q"]), out)
    run(launch, {"x_ptr": x, "y_ptr": y})
    return y


def global_avg_pool(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The mean over the pixels of x (N, C, H, W), as (N, C, 1, 1)."""
    x = dense_nhwc(x)
    n, c, h, w = x.shape
    y = _output(x, (n, c, 1, 1), out)
    run(plan.plan_global_avg_pool(n, h, w, c, dtype_name(x.dtype)), {"x_ptr": x, "y_ptr": y})
    return y


def option_a_shortcut(x: Tensor, out_channels: int, stride: int, out: Tensor | None = None) -> Tensor:
    """x (N, C, H, W) subsampled by `stride` and zero-padded to `out_channels`, channels_last."""
    x = dense_nhwc(x)
    n, c, h, w = x.shape
    y = _output(x, (n, out_channels, output_extent(h, 1, stride, 0), output_extent(w, 1, stride, 0)), out)
    run(plan.plan_option_a(n, h, w, c, out_channels, stride, dtype_name(x.dtype)), {"x_ptr": x, "y_ptr": y})
    return y
