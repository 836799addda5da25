"""The training ops as torch's own modules and autograd compute them, step by step in the maps' dtype.

Written from the equations and not from the reference, whose judge these are: gradients are autograd's.  `COMPOSED[op]`
returns what `OUTPUTS[op]` of `training_arguments` names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_resnet.backends import reference
from fused_resnet.backends.reference.parts import option_a_shortcut

from .training_arguments import comparable, far_means


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def vector(v: Tensor, like: Tensor) -> Tensor:
    return v.to(wide(like)).view(1, -1, 1, 1)


def normalized(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (z.to(wide(z)) * vector(scale, z) + vector(shift, z)).to(z.dtype)


def activated(z: Tensor, in_scale: Tensor | None, in_shift: Tensor | None) -> Tensor:
    return z if in_scale is None else normalized(z, in_scale, in_shift).relu()


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.to(wide(z))
    return z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)


def sums(g: Tensor, z: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    g, z = g.to(wide(g)), z.to(wide(z))
    return g.sum((0, 2, 3)), (g * (z - vector(mean, z))).sum((0, 2, 3))


def conv_stats(x, weight, in_scale, in_shift, stride, padding, dilation, groups):
    z = F.conv2d(activated(x, in_scale, in_shift), weight, None, stride, padding, dilation, groups)
    return z, *moments(z)


def _norm(mean, var, bn_weight, bn_bias, eps):
    invstd = 1 / (var + eps).sqrt()
    weight = torch.ones_like(mean) if bn_weight is None else bn_weight.to(mean.dtype)
    bias = torch.zeros_like(mean) if bn_bias is None else bn_bias.to(mean.dtype)
    return mean, var, invstd, weight * invstd, bias - mean * weight * invstd


def bn_finalize(partials, bn_weight, bn_bias, eps):
    count, mean, m2 = partials.unbind(1)
    total = count.sum(0)
    overall = (count * mean).sum(0) / total
    var = (m2 + count * (mean - overall).square()).sum(0) / total
    return _norm(overall, var, bn_weight, bn_bias, eps)


def _pixels(a: Tensor) -> Tensor:
    return a.to(wide(a)).permute(0, 2, 3, 1).flatten(0, 2)


def gram(z, in_scale, in_shift, weight, stride):
    a = _pixels(activated(z, in_scale, in_shift)[:, :, ::stride, ::stride])
    about, count = far_means(z, in_scale, in_shift, stride)
    away = a - about.to(a.dtype)
    return a.mean(0), away.T @ away / count


def gram_finalize(center, total, gram, count, weight, bn_weight, bn_bias, eps):
    center, total, gram = (tensor.to(wide(center)) for tensor in (center, total, gram))
    matrix = weight[:, :, 0, 0].to(gram.dtype)
    average = total / count
    covariance = gram / count - average[:, None] * average[None]
    var = torch.einsum("kc,cd,kd->k", matrix, covariance, matrix)
    return _norm(matrix @ (center + average), var, bn_weight, bn_bias, eps)


def _added(y: Tensor, residual: Tensor | None, residual_stride: int, act: str) -> Tensor:
    if residual is not None:
        y = y + option_a_shortcut(residual, y.shape[1], residual_stride)
    return y.relu() if act == "relu" else y


def conv1x1_bn_add_act(z, in_scale, in_shift, weight, scale, shift, residual, stride, residual_stride, act):
    y = normalized(F.conv2d(activated(z, in_scale, in_shift), weight, stride=stride), scale, shift)
    return (_added(y, residual, residual_stride, act),)


def bn_add_act(z, scale, shift, residual, residual_stride, act):
    return (_added(normalized(z, scale, shift), residual, residual_stride, act),)


def _gradient(leaf: Tensor, function, *outputs_and_gradients: tuple) -> Tensor:
    with torch.enable_grad():
        leaf = leaf.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, *outputs_and_gradients)[0]


def _dz(g, z, a, b, c):
    dz = vector(a, g) * g
    return (dz if b is None else dz + vector(b, g) * z + vector(c, g)).to(g.dtype)


def _with_skip(dx, skip, skip_out, skip_stride):
    if skip_out is not None:
        skip = _gradient(skip_out, torch.relu, skip)
    if skip is None:
        return dx
    return dx + _gradient(dx, lambda x: x[:, :, ::skip_stride, ::skip_stride], skip)


def conv_dgrad(
    g, z, a, b, c, weight, input_size, stride, padding, below_z, below_scale, below_shift, below_mean, below_out,
    skip, skip_out, skip_stride,
):  # fmt: skip
    dz = _dz(g, z, a, b, c)
    dx = _gradient(dz.new_zeros(input_size), lambda x: F.conv2d(x, weight, None, stride, padding), dz)
    dx = _with_skip(dx, skip, skip_out, skip_stride)
    activated = below_out if below_out is not None else below_z
    if activated is None:
        return (dx,)
    if below_out is None:
        activated = normalized(below_z, below_scale, below_shift)
    dx = _gradient(activated, torch.relu, dx)
    return (dx,) if below_z is None else (dx, *sums(dx, below_z, below_mean))


def conv1x1_backward(g, z, a, b, c, weight, x, rectified, skip, skip_out, skip_stride):
    dz = _dz(g, z, a, b, c)
    dx = _with_skip(_gradient(x, lambda leaf: F.conv2d(leaf, weight), dz), skip, skip_out, skip_stride)
    dx = _gradient(x, torch.relu, dx) if rectified else dx
    return dx, _gradient(weight, lambda leaf: F.conv2d(x, leaf), dz).to(wide(g))


def conv_wgrad(g, z, a, b, c, x, in_scale, in_shift, weight_size, stride, padding):
    dz, source = _dz(g, z, a, b, c), activated(x, in_scale, in_shift)
    weight = dz.new_zeros(weight_size)
    return (_gradient(weight, lambda w: F.conv2d(source, w, None, stride, padding), dz).to(wide(g)),)


def gram_products(grad, out, z, in_scale, in_shift, center, weight, stride):
    g = grad if out is None else _gradient(out, torch.relu, grad)
    a = activated(z, in_scale, in_shift)[:, :, ::stride, ::stride].to(wide(z)) - vector(center, z)
    t = F.conv2d(g, weight.T[:, :, None, None])
    return _pixels(g).T @ _pixels(a), _pixels(g).sum(0), t


def gram_backward_finish(t, z, in_scale, in_shift, center, quadratic, constant, below_mean):
    a = activated(z, in_scale, in_shift).to(wide(z)) - vector(center, z)
    da = t + F.conv2d(a, quadratic.T.to(wide(z))[:, :, None, None], constant.to(wide(z)))
    g = da.to(t.dtype)
    if in_scale is not None:
        g = _gradient(activated(z, in_scale, in_shift), torch.relu, g)
    return g, *sums(g, z, below_mean)


def bn_relu_maxpool(z, scale, shift, kernel, stride, padding):
    return (F.max_pool2d(activated(z, scale, shift), kernel, stride, padding),)


def bn_relu_maxpool_backward(grad, argmax, z, scale, shift, mean, kernel, stride, padding):
    # the arg max of the case is that of torch's pooling, so that autograd needs no telling
    g = _gradient(normalized(z, scale, shift), lambda y: F.max_pool2d(y.relu(), kernel, stride, padding), grad)
    return g, *sums(g, z, mean)


def bn_act_backward(grad, out, z, mean):
    g = grad if out is None else _gradient(out, torch.relu, grad)
    return g, *sums(g, z, mean)


COMPOSED = {
    "conv_stats": conv_stats,
    "channel_stats": lambda z: moments(z),
    "bn_finalize": bn_finalize,
    "gram": gram,
    "gram_finalize": gram_finalize,
    "conv1x1_bn_add_act": conv1x1_bn_add_act,
    "bn_add_act": bn_add_act,
    "conv_dgrad": conv_dgrad,
    "conv_wgrad": conv_wgrad,
    "conv1x1_backward": conv1x1_backward,
    "bn_backward_apply": lambda g, z, a, b, c: (_dz(g, z, a, b, c),),
    "gram_products": gram_products,
    "gram_backward_finish": gram_backward_finish,
    "bn_relu_maxpool": bn_relu_maxpool,
    "bn_relu_maxpool_backward": bn_relu_maxpool_backward,
    "bn_act_backward": bn_act_backward,
}


def judge(op: str) -> Callable[..., tuple[Tensor, ...]]:
    """What a backend's `op` is held against: the reference.

    Except where the reference sums in float64 what a kernel may sum in float32: its rounding would excuse nothing.
    """
    return COMPOSED[op] if op == "gram_products" else comparable(op, getattr(reference, op))
