"""Convolution, batch norm, ReLU and, for a stem, max-pool as one autograd Function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops import training as raw
from ..ops.asked import held
from . import grouped, norm
from .norm import Affine, Normalized, pixels
from .unit import Geometry, Unit, gradient_of


@dataclass(frozen=True)
class StemPlan:
    """`pool`: kernel, stride and padding of the max-pool, or None; `dtype`: what the maps are computed in."""

    unit: Geometry
    pool: tuple[int, int, int] | None
    dtype: torch.dtype


class ConvBnActFunction(torch.autograd.Function):
    """`y, *statistics = ConvBnActFunction.apply(plan, x, weight, bn_weight, bn_bias, constant_mean, constant_var)`.

    `y = maxpool(relu(bn(conv(x))))`, kept for the backward: x, the convolution's raw output, and where each maximum
    came from, in a byte.  `statistics`, not differentiable: the mean and biased variance in use, and where ranks share
    them the pixels of all, else None.
    """

    @staticmethod
    def forward(ctx, plan: StemPlan, x: Tensor, weight: Tensor, *vectors: Tensor | None):
        with held() as ctx.backend, torch.autocast(x.device.type, enabled=False):
            unit = Unit(weight.to(plan.dtype), Affine(*vectors, plan.unit.eps, plan.unit.group), plan.unit)
            z, normalized = unit.forward(x, None, None)
            if plan.pool is None:
                y = raw.bn_add_act(z, normalized.scale, normalized.shift, None, 1, "relu")
                where = y
            else:
                y, where = raw.bn_relu_maxpool(z, normalized.scale, normalized.shift, *plan.pool)
        ctx.plan, ctx.batch = plan, normalized.batch
        ctx.save_for_backward(x, weight, z, where, *vectors[:2], *normalized[:-1])
        statistics = normalized.mean, normalized.var, normalized.count
        ctx.mark_non_differentiable(*(vector for vector in statistics if vector is not None))
        ctx.set_materialize_grads(False)
        return y, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        plan = ctx.plan
        with held(ctx.backend):  # under checkpointing this computes again
            x, weight, z, where, bn_weight, bn_bias, *vectors = ctx.saved_tensors
        normalized = Normalized(*vectors, batch=ctx.batch)
        with held(ctx.backend), torch.autocast(x.device.type, enabled=False):
            if plan.pool is None:
                g, sum_g, sum_gz = raw.bn_act_backward(grad, where, z, normalized.mean)
            else:
                scale_shift_mean = normalized.scale, normalized.shift, normalized.mean
                g, sum_g, sum_gz = raw.bn_relu_maxpool_backward(grad, where, z, *scale_shift_mean, *plan.pool)
            found = norm.backward(normalized, sum_g, sum_gz, pixels(z))
            _, needs_x, needs_weight, needs_bn_weight, needs_bn_bias, *_ = ctx.needs_input_grad
            dz = g, z, found.a, found.b, found.c
            dx, d_weight = _convolution_backward(dz, x, weight.to(plan.dtype), plan.unit, (needs_x, needs_weight))
        return (
            None,
            dx,
            gradient_of(weight, d_weight) if needs_weight else None,
            found.weight.to(bn_weight.dtype) if needs_bn_weight else None,
            found.bias.to(bn_bias.dtype) if needs_bn_bias else None,
            None,
            None,
        )


def _convolution_backward(
    dz: tuple, x: Tensor, weight: Tensor, unit: Geometry, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and of the weight, where `needs` says so."""
    if not unit.plain:
        window = unit.stride, unit.padding, unit.dilation, unit.groups
        return grouped.conv_backward(dz, x, None, None, weight, *window, needs)[:2]
    dx = d_weight = None
    window = unit.stride, unit.padding
    if needs[1]:
        d_weight = raw.conv_wgrad(*dz, x, None, None, list(weight.shape), *window)
    if needs[0]:
        below = (None,) * 5
        dx, _, _ = raw.conv_dgrad(*dz, weight, list(x.shape), *window, *below, None, None, 1)
    return dx, d_weight
