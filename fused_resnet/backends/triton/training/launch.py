"""The training ops over Triton kernels: from tensors to launches and back, as `launch.py` does for inference.

Every map is dense NHWC (others are copied into it first), vectors are float32.  What a kernel sums over pixels it
leaves as one row of partials a tile or slice; those are summed here by torch, in a fixed order.  `conv_stats` takes no
groups and no dilation: such a convolution is ATen's, with `channel_stats` behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....shapes import ConvShape, output_extent, pair
from .. import launch
from ..availability import architecture
from ..launch import dense_nhwc, dtype_name
from ..plan import _TYPES
from . import plan as planning
from . import split_plan as split_planning

__all__ = [
    "bn_act_backward",
    "bn_add_act",
    "bn_backward_apply",
    "bn_finalize",
    "bn_relu_maxpool",
    "bn_relu_maxpool_backward",
    "channel_stats",
    "conv_dgrad",
    "conv_stats",
    "conv_wgrad",
]

_ELEMENTS = {getattr(torch, name): element for name, element in _TYPES.items() if hasattr(torch, name)}
_ELEMENTS |= {torch.uint8: "u8", torch.int32: "i32"}


def _map(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else dense_nhwc(tensor)


def _vector(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _partials(like: Tensor, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device)


def _types(tensors: dict[str, Tensor | None]) -> planning.Types:
    return tuple((name, None if tensor is None else _ELEMENTS[tensor.dtype]) for name, tensor in tensors.items())


def _output(like: Tensor, size: tuple[int, int, int, int], dtype: torch.dtype | None = None) -> Tensor:
    like = like if dtype is None else like.new_empty(0, dtype=dtype)
    return launch._output(like, size, None)


def _machine(tensor: Tensor) -> tuple[str, int]:
    """What a plan needs to know of the tensors: their dtype's name and their device's architecture."""
    return dtype_name(tensor.dtype), architecture(tensor.device)


def _norm(in_scale: Tensor | None, in_shift: Tensor | None) -> dict[str, Tensor | None]:
    return {"in_scale_ptr": _vector(in_scale), "in_shift_ptr": _vector(in_shift)}


def _gradient(g: Tensor, z: Tensor | None, a: Tensor | None, b: Tensor | None, c: Tensor | None):
    """The BN-backward prologue's tensors; z is left out where its slope is."""
    tensors = {"g_ptr": dense_nhwc(g), "z_ptr": None if b is None else _map(z), "out_ptr": None}
    return tensors | {"a_ptr": _vector(a), "b_ptr": _vector(b), "c_ptr": _vector(c)}


def _summed(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The two (C,) sums of partials (tiles, 2, C); not two views of one, since an op's outputs are its own."""
    return sums[:, 0].sum(0), sums[:, 1].sum(0)


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
    """`z = conv(relu(x * in_scale + in_shift), weight)` and the (count, mean, M2) of every 128 pixels of it."""
    shape = ConvShape.of(x, weight, pair(tuple(stride)), pair(tuple(padding)), pair(tuple(dilation)), groups)
    x, weight = dense_nhwc(x), dense_nhwc(weight.to(x.dtype))
    z = _output(x, (shape.n, shape.k, shape.p, shape.q))
    partials = _partials(x, planning.tiles_of(shape.gemm_m), 3, shape.k)
    tensors = {"x_ptr": x, "w_ptr": weight, "y_ptr": z, "partials_ptr": partials} | _norm(in_scale, in_shift)
    launch.run(planning.plan_conv_stats(shape, *_machine(x), _types(tensors)), tensors)
    return z, partials


def channel_stats(z: Tensor) -> Tensor:
    """The (count, mean, M2) of every 128 pixels of z (N, K, P, Q), as (tiles, 3, K)."""
    z = dense_nhwc(z)
    n, k, p, q = z.shape
    partials = _partials(z, planning.tiles_of(n * p * q), 3, k)
    tensors = {"z_ptr": z, "y_ptr": partials}
    launch.run(planning.plan_rows("channel_stats", n * p * q, k, _types(tensors)), tensors)
    return partials


def bn_finalize(
    partials: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean, biased variance, invstd, scale and shift, (K,) each, from partials (tiles, 3, K)."""
    partials = partials.contiguous()
    tiles, _, k = partials.shape
    names = ("y_ptr", "var_ptr", "invstd_ptr", "scale_ptr", "shift_ptr")
    outputs = {name: _partials(partials, k) for name in names}
    vectors = {"bn_weight_ptr": _vector(bn_weight), "bn_bias_ptr": _vector(bn_bias)}
    tensors = {"partials_ptr": partials} | vectors | outputs
    launch.run(planning.plan_bn_finalize(tiles, k, eps, _types(tensors)), tensors)
    return tuple(outputs.values())


def _residual(residual: Tensor | None, stride: int) -> planning.Residual | None:
    return None if residual is None else planning.Residual(tuple(residual.shape[1:]), stride)


def bn_add_act(
    z: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, residual_stride: int, act: str
) -> Tensor:
    """`act(z * scale + shift + shortcut(residual))` in one pass."""
    z = dense_nhwc(z)
    n, k, p, q = z.shape
    y = _output(z, (n, k, p, q))
    vectors = {"scale_ptr": _vector(scale), "shift_ptr": _vector(shift)}
    tensors = {"z_ptr": z, "y_ptr": y, "residual_ptr": _map(residual)} | vectors
    described = _residual(residual, residual_stride)
    launch.run(planning.plan_bn_add_act(n, p, q, k, _types(tensors), described, act == "relu"), tensors)
    return y


def bn_act_backward(grad: Tensor, out: Tensor | None, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`g = grad` where `out > 0`, and the sums of g and of `g * (z - mean)`."""
    n, k, p, q = z.shape
    g = _output(grad, (n, k, p, q))
    sums = _partials(z, planning.tiles_of(n * p * q), 2, k)
    maps = {"g_ptr": dense_nhwc(grad), "out_ptr": _map(out), "z_ptr": dense_nhwc(z)}
    tensors = maps | {"mean_ptr": _vector(mean), "y_ptr": g, "sums_ptr": sums}
    launch.run(planning.plan_rows("bn_act_backward", n * p * q, k, _types(tensors)), tensors)
    return g, *_summed(sums)


def bn_backward_apply(g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None) -> Tensor:
    """`a * g + b * z + c` in one pass."""
    tensors = _gradient(g, z, a, b, c)
    del tensors["out_ptr"]
    n, k, p, q = g.shape
    y = _output(g, (n, k, p, q))
    tensors["y_ptr"] = y
    launch.run(planning.plan_rows("bn_backward_apply", n * p * q, k, _types(tensors)), tensors)
    return y


def bn_relu_maxpool(
    z: Tensor, scale: Tensor, shift: Tensor, kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Max pooling of `relu(z * scale + shift)`, and where in its window each maximum lies (uint8)."""
    z = dense_nhwc(z)
    n, k, h, w = z.shape
    size = (n, k, output_extent(h, kernel, stride, padding), output_extent(w, kernel, stride, padding))
    y, argmax = _output(z, size), _output(z, size, torch.uint8)
    tensors = {"z_ptr": z, "y_ptr": y, "argmax_ptr": argmax, "scale_ptr": _vector(scale), "shift_ptr": _vector(shift)}
    window = (kernel, stride, padding)
    launch.run(planning.plan_bn_pool(n, h, w, k, window, _types(tensors), backward=False), tensors)
    return y, argmax


def bn_relu_maxpool_backward(
    grad: Tensor,
    argmax: Tensor,
    z: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    kernel: int,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the BN's output, masked by its ReLU, and its sums."""
    n, k, h, w = z.shape
    g = _output(z, (n, k, h, w))
    sums = _partials(z, planning.tiles_of(n * h * w), 2, k)
    vectors = {"scale_ptr": _vector(scale), "shift_ptr": _vector(shift), "mean_ptr": _vector(mean)}
    maps = {"g_ptr": dense_nhwc(grad), "argmax_ptr": dense_nhwc(argmax), "z_ptr": dense_nhwc(z)}
    tensors = maps | vectors | {"y_ptr": g, "sums_ptr": sums}
    window = (kernel, stride, padding)
    launch.run(planning.plan_bn_pool(n, h, w, k, window, _types(tensors), backward=True), tensors)
    return g, *_summed(sums)


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
    """The gradient of a convolution's input; see `fused_resnet.ops.training`."""
    epilogue = {
        "below_z_ptr": _map(below_z),
        "below_scale_ptr": _vector(below_scale),
        "below_shift_ptr": _vector(below_shift),
        "below_mean_ptr": _vector(below_mean),
        "below_out_ptr": _map(below_out),
        "skip_ptr": _map(skip),
        "skip_out_ptr": _map(skip_out),
    }
    size = tuple(input_size)
    return _dgrad(_gradient(g, z, a, b, c), weight, size, stride, padding, epilogue, skip_stride)


_NO_EPILOGUE = dict.fromkeys(
    f"{name}_ptr" for name in ("below_z", "below_scale", "below_shift", "below_mean", "below_out", "skip", "skip_out")
)


def _dgrad(
    gradient, weight: Tensor, input_size, stride, padding, epilogue=_NO_EPILOGUE, skip_stride: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    g = gradient["g_ptr"]
    n, c, h, w = input_size
    k, _, r, s = weight.shape
    shape = ConvShape(n, c, h, w, k, r, s, pair(tuple(stride)), pair(tuple(padding)))
    dx = _output(g, (n, c, h, w))
    sums = None if epilogue["below_z_ptr"] is None else _partials(g, planning.dgrad_tiles(shape), 2, c)
    tensors = gradient | {"w_ptr": dense_nhwc(weight.to(g.dtype)), "y_ptr": dx, "sums_ptr": sums} | epilogue
    launch.run(planning.plan_conv_dgrad(shape, *_machine(g), _types(tensors), skip_stride), tensors)
    if sums is None:
        return dx, _partials(g, 0), _partials(g, 0)
    return dx, *_summed(sums)


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
    """The gradient of a convolution's weight, float32 and channels_last."""
    k, c_in, r, s = weight_size
    shape = ConvShape(*_nchw(x), k, r, s, pair(tuple(stride)), pair(tuple(padding)))
    source = {"x_ptr": dense_nhwc(x), "center_ptr": None} | _norm(in_scale, in_shift)
    slices, _ = _wgrad(shape, _gradient(g, z, a, b, c) | source)
    return slices.view(k, r, s, c_in).permute(0, 3, 1, 2)


def _nchw(x: Tensor) -> tuple[int, int, int, int]:
    return tuple(x.shape)


def _wgrad(shape: ConvShape, tensors, totals: bool = False) -> tuple[Tensor, Tensor | None]:
    """(K, R*S*C) sums of products over all pixels, and where `totals` the (K,) sums of the gradient itself."""
    g = tensors["g_ptr"]
    # the plan depends on which pointers there are, not on how long they are
    types = _types(tensors) + (("y_ptr", "fp32"), ("total_ptr", "fp32" if totals else None))
    plan, splits = split_planning.plan_conv_wgrad(shape, *_machine(g), types)
    slices = _partials(g, splits, shape.k, shape.gemm_k)
    total = _partials(g, splits, shape.k) if totals else None
    launch.run(plan, tensors | {"y_ptr": slices, "total_ptr": total})
    return slices.sum(0), None if total is None else total.sum(0)
