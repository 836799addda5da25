"""Convolution, batch norm, ReLU and, for a stem, max-pool as one autograd Function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops import training as raw
from . import norm
from .norm import Affine, Normalized
from .residual import Geometry


@dataclass(frozen=True)
class StemPlan:
    """`pool`: kernel, stride and padding of the max-pool, or None; `dtype`: what the maps are computed in."""

    unit: Geometry
    pool: tuple[int, int, int] | None
    dtype: torch.dtype


class ConvBnActFunction(torch.autograd.Function):
    """`y, mean, var = ConvBnActFunction.apply(plan, x, weight, bn_weight, bn_bias, constant_mean, constant_var)`.

    `y = maxpool(relu(bn(conv(x))))`, kept for the backward: x, the convolution's raw output, and where each maximum
    came from, in a byte.  `mean` and the biased `var` are the statistics in use, not differentiable.
    """

    @staticmethod
    def forward(ctx, plan: StemPlan, x: Tensor, weight: Tensor, *vectors: Tensor | None):
        with torch.autocast(x.device.type, enabled=False):
            unit = plan.unit
            z, partials = raw.conv_stats(x, weight.to(plan.dtype), None, None, unit.stride, unit.padding, (1, 1), 1)
            normalized = norm.from_partials(Affine(*vectors, unit.eps), partials, z)
            if plan.pool is None:
                y = raw.bn_add_act(z, normalized.scale, normalized.shift, None, 1, "relu")
                where = y
            else:
                y, where = raw.bn_relu_maxpool(z, normalized.scale, normalized.shift, *plan.pool)
        ctx.plan, ctx.batch = plan, normalized.batch
        ctx.save_for_backward(x, weight, z, where, *vectors[:2], *normalized[:5])
        ctx.mark_non_differentiable(normalized.mean, normalized.var)
        ctx.set_materialize_grads(False)
        return y, normalized.mean, normalized.var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        plan, unit = ctx.plan, ctx.plan.unit
        x, weight, z, where, bn_weight, bn_bias, *vectors = ctx.saved_tensors
        normalized = Normalized(*vectors, batch=ctx.batch)
        with torch.autocast(x.device.type, enabled=False):
            if plan.pool is None:
                g, sum_g, sum_gz = raw.bn_act_backward(grad, where, z, normalized.mean)
            else:
                scale_shift_mean = normalized.scale, normalized.shift, normalized.mean
                g, sum_g, sum_gz = raw.bn_relu_maxpool_backward(grad, where, z, *scale_shift_mean, *plan.pool)
            found = norm.backward(normalized, sum_g, sum_gz, z.shape[0] * z.shape[2] * z.shape[3])
            coefficients = found.a, found.b, found.c
            _, needs_x, needs_weight, needs_bn_weight, needs_bn_bias, *_ = ctx.needs_input_grad
            dx = d_weight = None
            if needs_weight:
                d_weight = raw.conv_wgrad(
                    g, z, *coefficients, x, None, None, list(weight.shape), unit.stride, unit.padding
                ).to(weight.dtype)
            if needs_x:
                nothing = (None,) * 6
                dx, _, _ = raw.conv_dgrad(
                    g, z, *coefficients, weight.to(plan.dtype), list(x.shape), unit.stride, unit.padding, *nothing
                )
        return (
            None,
            dx,
            d_weight,
            found.weight.to(bn_weight.dtype) if needs_bn_weight else None,
            found.bias.to(bn_bias.dtype) if needs_bn_bias else None,
            None,
            None,
        )
