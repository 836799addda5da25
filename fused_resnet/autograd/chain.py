"""Residual blocks, one after the other, as one autograd Function.

Between two blocks of a chain nobody sees the gradient.  So a block hands it down masked by the ReLU below it, in the
epilogue of the convolution that makes it, and the block below need not read its own output to mask it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.asked import held
from .norm import Normalized
from .residual import TENSORS_A_UNIT, BlockPlan, Incoming, Kept, below, block_backward, block_forward
from .tail import Tail
from .unit import gradient_of


def tensors_of(plan: BlockPlan) -> int:
    """How many tensors a block has: those of its convolutions, the projection's last."""
    return TENSORS_A_UNIT * (len(plan.units) + (plan.downsample is not None))


class ResidualFunction(torch.autograd.Function):
    """`out, *statistics = ResidualFunction.apply(plans, x, *tensors)`: the blocks of `plans`, one after the other.

    `tensors`: block by block, for each convolution, the projection's last: weight, norm weight, norm bias, and where
    its statistics are constants, their mean and variance.  `statistics`: the mean and biased variance of each norm, and
    where ranks share them the pixels of all, else None; block by block in the order of `tensors`, not differentiable.
    """

    @staticmethod
    def forward(ctx, plans: tuple[BlockPlan, ...], x: Tensor, *tensors: Tensor | None):
        maps, kept, rest = [x], [], list(tensors)
        # Outside, autocast chose the maps' dtype; inside, it must not choose the vectors'.
        with held() as ctx.backend, torch.autocast(x.device.type, enabled=False):
            for plan in plans:
                own, rest = rest[: tensors_of(plan)], rest[tensors_of(plan) :]
                out, one = block_forward(plan, maps[-1], own)
                maps.append(out)
                kept.append(one)
        ctx.plans, ctx.count = plans, len(tensors)
        packed = [_pack(one) for one in kept]
        ctx.layouts = [layout for layout, _ in packed]
        ctx.save_for_backward(*maps, *tensors, *(tensor for _, saved in packed for tensor in saved))
        statistics = [vector for one in kept for norm in _norms(one) for vector in (norm.mean, norm.var, norm.count)]
        ctx.mark_non_differentiable(*(vector for vector in statistics if vector is not None))
        # or autograd makes zeros for each statistic
        ctx.set_materialize_grads(False)
        return (out, *statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, *_):
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        blocks = len(ctx.plans)
        # read once: under checkpointing a read computes again
        with held(ctx.backend):
            saved = list(ctx.saved_tensors)
        maps, saved = saved[: blocks + 1], saved[blocks + 1 :]
        tensors, saved = saved[: ctx.count], saved[ctx.count :]
        kept = [_unpack(layout, saved) for layout in ctx.layouts]
        needs = list(ctx.needs_input_grad[1:])
        found: list[Tensor | None] = [None] * ctx.count
        incoming = Incoming(grad.contiguous(memory_format=torch.channels_last), maps[-1], None)
        end = ctx.count
        with held(ctx.backend), torch.autocast(grad.device.type, enabled=False):
            for i in range(blocks - 1, -1, -1):
                own = slice(end - tensors_of(ctx.plans[i]), end)
                end = own.start
                wanted = [any(needs[: 1 + own.start]), *needs[1 + own.start : 1 + own.stop]]
                under = below(ctx.plans[i - 1], kept[i - 1]) if i else None
                incoming, found[own] = block_backward(
                    ctx.plans[i], kept[i], maps[i], incoming, tensors[own], wanted, under
                )
                if incoming is None:
                    break
        dx = None if incoming is None else incoming.grad
        pairs = zip(needs, (dx, *found), (maps[0], *tensors), strict=True)
        return None, *(gradient_of(t, g) if need and g is not None else None for need, g, t in pairs)


def _norms(kept: Kept) -> list[Normalized]:
    """In the order of the block's convolutions, the projection's last."""
    return [*kept.norms, *(tail.norm for tail in (kept.tail, kept.projection) if tail is not None)]


def _pack(kept: Kept) -> tuple[tuple, list[Tensor | None]]:
    """What a block keeps as a list of tensors, and how to read it back."""
    norms = _norms(kept)
    sums = [tensor for tail in (kept.tail, kept.projection) if tail is not None for tensor in tail[1:]]
    layout = (len(kept.maps), kept.tail is not None, kept.projection is not None, [norm.batch for norm in norms])
    return layout, [*kept.maps, *(vector for norm in norms for vector in norm[:-1]), *sums]


def _unpack(layout: tuple, saved: list[Tensor | None]) -> Kept:
    """The inverse of `_pack`; takes its tensors off the front of `saved`."""

    def take(count: int) -> list[Tensor | None]:
        taken, saved[:count] = saved[:count], []
        return taken

    count, has_tail, has_projection, batch = layout
    maps = take(count)
    norms = [Normalized(*take(len(Normalized._fields) - 1), batch=flag) for flag in batch]
    tails = [Tail(norm, *take(len(Tail._fields) - 1)) for norm in norms[count:]]
    tail = tails.pop(0) if has_tail else None
    return Kept(maps, norms[:count], tail, tails.pop(0) if has_projection else None)
