"""The training ops that make two products of one gradient, over Triton kernels: `conv1x1_backward`, `gram_products`.

Where the gradient has at most `ONE_READ_FILTERS` channels one kernel makes both from one read of every map.  How
tensors reach a kernel and partials are summed: `launch.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....shapes import ConvShape, pair
from .. import launch
from ..launch import dense_nhwc
from . import split_plan as split_planning
from .launch import _dgrad, _gradient, _machine, _map, _norm, _output, _partials, _types, _vector, _wgrad

__all__ = ["conv1x1_backward", "gram_products"]

ONE_READ_FILTERS = 256  # a tile holds them all, beside their products


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
    """The gradients of a 1x1 convolution's input, the skip's added, and of its weight, in one launch."""
    shape = ConvShape(*x.shape, weight.shape[0], 1, 1)
    source = {"x_ptr": dense_nhwc(x), "center_ptr": None} | _norm(None, None)
    added = {"skip_ptr": _map(skip), "skip_out_ptr": _map(skip_out)}
    options = {"rectified": rectified, "skip_stride": skip_stride}
    products, _, dx = _one_read(shape, _gradient(g, z, a, b, c) | source | added, weight, False, **options)
    return dx, products.view(weight.shape)


def gram_products(
    grad: Tensor,
    out: Tensor | None,
    z: Tensor,
    in_scale: Tensor | None,
    in_shift: Tensor | None,
    center: Tensor,
    weight: Tensor,
    stride: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`g^T a` (K, C), the sums of g (K,), and `g @ weight` (N, C, P, Q), where g is `grad` masked by `out`.

    One launch up to 256 filters, as a ResNet's first stage has.  Beyond, where a tile of all filters would leave no
    room for the products, two, each of which reads grad and out."""
    shape = ConvShape(*z.shape, grad.shape[1], 1, 1, pair(stride))
    gradient = {"g_ptr": dense_nhwc(grad), "out_ptr": _map(out)} | dict.fromkeys(("z_ptr", "a_ptr", "b_ptr", "c_ptr"))
    source = {"x_ptr": dense_nhwc(z), "center_ptr": _vector(center)} | _norm(in_scale, in_shift)
    if shape.k <= ONE_READ_FILTERS:
        added = {"skip_ptr": None, "skip_out_ptr": None}
        return _one_read(shape, gradient | source | added, weight, True)
    products, sums = _wgrad(shape, gradient | source, totals=True)
    size = (shape.n, shape.c, shape.p, shape.q)
    t, _, _ = _dgrad(gradient, weight[:, :, None, None], size, (1, 1), (0, 0))
    return products, sums, t


def _one_read(
    shape: ConvShape, tensors, weight: Tensor, totals: bool, rectified: bool = False, skip_stride: int = 1
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(K, C) products of the gradient and x, where `totals` the (K,) sums of the gradient, and (N, C, P, Q) its
    product with weight."""
    g = tensors["g_ptr"]
    y = _output(g, (shape.n, shape.c, shape.p, shape.q))
    tensors = tensors | {"w_ptr": weight.to(g.dtype).flatten(1).contiguous(), "y_ptr": y}
    # the plan depends on which pointers there are, not on how long they are
    types = _types(tensors) + (("slices_ptr", "fp32"), ("total_ptr", "fp32" if totals else None))
    plan, splits = split_planning.plan_one_read(shape, *_machine(g), types, rectified, skip_stride)
    slices = _partials(g, splits, shape.k, shape.c)
    total = _partials(g, splits, shape.k) if totals else None
    launch.run(plan, tensors | {"slices_ptr": slices, "total_ptr": total})
    # of float32 maps, what is made of the products may cancel as a variance does (`gram_check`)
    products = slices.sum(0) if g.dtype != torch.float32 else slices.sum(0, dtype=torch.float64).float()
    return products, None if total is None else total.sum(0), y
