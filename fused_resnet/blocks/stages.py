"""A network from its stem to its pool; stages of residual blocks as one autograd Function where nobody could tell."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..ops.asked import one_backend
from ..ops.dispatch import note_path, trains_by_name
from . import trainable
from .eligibility import hook_reason
from .residual import BasicBlock, Bottleneck
from .stem import head_pool, stem_forward


@one_backend
def features(stem: tuple[nn.Module | None, ...], stages: Iterable[nn.Module], avgpool: nn.Module, x: Tensor) -> Tensor:
    """All of a network but its classifier; `stem` as `stem_forward` takes it."""
    return head_pool(avgpool, stages_forward(stages, stem_forward(*stem, x)))


@one_backend
def stages_forward(stages: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The stages one after the other, where those whose blocks all train fused do so as one autograd Function.

    Among several processes it is one Function a stage: gradients that all come at the end could not be exchanged while
    others are computed.
    """
    chain: list[BasicBlock | Bottleneck] = []
    for stage in stages:
        chains = _chains(stage, x)
        if not chains or _exchanges_gradients():
            x, chain = _run_chain(chain, x), []
        if chains:
            chain += stage
        else:
            x = stage(x)
    return _run_chain(chain, x)


def _chains(stage: nn.Module, x: Tensor) -> bool:
    """Whether nobody could tell that the blocks of `stage` are not called one by one."""
    if not trains_by_name() or type(stage) is not nn.Sequential or hook_reason(stage) is not None:
        return False
    for block in stage:
        plain = type(block) in (BasicBlock, Bottleneck) and hook_reason(block) is None
        if not plain or block.unfused_reason(x) is None or block.untrainable_reason(x) is not None:
            return False
    return True


def _exchanges_gradients() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _run_chain(blocks: list[BasicBlock | Bottleneck], x: Tensor) -> Tensor:
    for block in blocks:
        note_path(block, None)
    return trainable.run_blocks(x, [block.parts() for block in blocks]) if blocks else x
