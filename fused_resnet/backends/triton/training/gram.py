"""The training ops of a 1x1 convolution whose output is never stored before its batch norm, over Triton kernels.

The algebra is that of the Gram matrix; see `fused_resnet.ops.training`.  How tensors reach a kernel and partials are
summed: `launch.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....shapes import ConvShape, pair
from ... import gram_check
from ...reference.gram_matrix import gram_finalize
from .. import launch
from ..launch import dense_nhwc
from . import plan as planning
from . import split_plan as split_planning
from .launch import _machine, _map, _norm, _output, _partials, _residual, _summed, _types, _vector

__all__ = ["conv1x1_bn_add_act", "gram", "gram_backward_finish", "gram_finalize"]


def _pointwise_shape(z: Tensor, filters: int, stride: int | tuple[int, int]) -> ConvShape:
    stride = pair(stride if isinstance(stride, int) else tuple(stride))
    return ConvShape(*z.shape, filters, 1, 1, stride)


def conv1x1_bn_add_act(
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: tuple[int, int],
    residual_stride: int,
    act: str,
) -> Tensor:
    """`act(scale * conv1x1(relu(z * in_scale + in_shift)) + shift + shortcut(residual))`."""
    shape = _pointwise_shape(z, weight.shape[0], stride)
    z, weight = dense_nhwc(z), dense_nhwc(weight.to(z.dtype))
    y = _output(z, (shape.n, shape.k, shape.p, shape.q))
    vectors = {"scale_ptr": _vector(scale), "shift_ptr": _vector(shift)} | _norm(in_scale, in_shift)
    tensors = {"x_ptr": z, "w_ptr": weight, "y_ptr": y, "residual_ptr": _map(residual)} | vectors
    described = _residual(residual, residual_stride)
    launch.run(planning.plan_conv_bn_add_act(shape, *_machine(z), _types(tensors), described, act == "relu"), tensors)
    return y


def gram(
    z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None, weight: Tensor | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A centre (C,), and the sum (C,) and the Gram matrix (C, C) of the strided activations about it."""
    c = z.shape[1]
    shape = _pointwise_shape(z, c, stride)
    z = dense_nhwc(z)
    center = _partials(z, c)
    inputs = {"z_ptr": z, "center_ptr": center} | _norm(in_scale, in_shift)
    plan, splits = split_planning.plan_gram(shape, *_machine(z), _types(inputs) + (("y_ptr", "fp32"),))
    slices = _partials(z, splits, c + 1, c)
    launch.run(plan, inputs | {"y_ptr": slices})

    def summed_again(flag: Tensor) -> Tensor:
        guarded = inputs | {"flag_ptr": flag}
        plan, splits = split_planning.plan_gram_exact(shape, _types(guarded) + (("y_ptr", "fp64"),))
        slices = _partials(z, splits, c + 1, c, dtype=torch.float64)
        launch.run(plan, guarded | {"y_ptr": slices})
        return slices

    sums = slices.sum(0, dtype=torch.float64)
    return center, *gram_check.checked(sums[-1], sums[:-1], weight, shape.gemm_m, z.dtype, summed_again)


def gram_backward_finish(
    t: Tensor,
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    center: Tensor,
    quadratic: Tensor,
    constant: Tensor,
    below_mean: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`t + (prologue(z) - center) @ quadratic + constant`, masked by the prologue's ReLU, and its sums.

    In half precision `quadratic` is multiplied as the sum of two matrices, of its leading and of its trailing bits."""
    t, z = dense_nhwc(t), dense_nhwc(z)
    n, c, p, q = z.shape
    rows = n * p * q
    g, sums = _output(t, (n, c, p, q)), _partials(t, planning.tiles_of(rows), 2, c)
    vectors = {"constant_ptr": _vector(constant), "mean_ptr": _vector(below_mean), "center_ptr": _vector(center)}
    parts = quadratic.to(z.dtype).unsqueeze(0)
    if z.dtype != torch.float32:
        parts = torch.cat((parts, (quadratic - parts.to(quadratic.dtype)).to(z.dtype)))
    maps = {"t_ptr": t, "z_ptr": z, "w_ptr": parts.contiguous(), "y_ptr": g, "sums_ptr": sums}
    tensors = maps | vectors | _norm(in_scale, in_shift)
    launch.run(planning.plan_gram_finish(rows, c, *_machine(z), _types(tensors)), tensors)
    return g, *_summed(sums)
