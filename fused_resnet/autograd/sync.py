"""What the ranks of a process group tell each other for SyncBatchNorm: per-channel vectors, never a map.

Forward, each rank sends the (count, mean, M2) of its own pixels; backward, the two sums of its own gradient.  Everyone
gathers them in rank order and reduces them in that order, so that every rank computes the same bits.

A rank that raises before a collective leaves the others waiting in it until the group's timeout, or until it closes its
connections; they raise then, and the running statistics of the blocks that were running are unchanged on all of them.
One that raises after the last collective of a forward pass cannot stop the others from finishing theirs: their running
statistics have counted the batch and its own have not, and they raise in the next collective, in their backward pass or
DistributedDataParallel's.  To go on after such an error, load a checkpoint on every rank, as with torch's own
SyncBatchNorm.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

# For the first norm of a run, what its ranks last agreed on, so that they are asked once and not at every step.
_agreed: weakref.WeakKeyDictionary[nn.Module, tuple] = weakref.WeakKeyDictionary()


def group_of(norm: nn.Module) -> dist.ProcessGroup | None:
    """The process group whose ranks share the statistics of `norm`; None where they are this process's alone.

    As in torch, they are shared by a SyncBatchNorm in training mode, where torch.distributed is initialised, over
    `norm.process_group` or else the whole world, if that has more than one rank.

    Raises:
        ValueError: this rank is not in `norm.process_group`.
    """
    if type(norm) is not nn.SyncBatchNorm or not norm.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError(
            f"rank {dist.get_rank()} is not in the process group of a SyncBatchNorm of {norm.num_features} channels;"
            " give each rank's modules a group that it is in, made by torch.distributed.new_group"
        )
    return group if size > 1 else None


def require_agreement(norms: Sequence[nn.Module], groups: Sequence[dist.ProcessGroup | None], dtype: torch.dtype):
    """That all ranks of each group are about to share the statistics of the same norms.

    Asked where these modules run for the first time; a rank that later changes its model alone is not noticed, and the
    collectives then fail or hang as torch.distributed's do.

    Args:
        norms: in the order of their use.
        groups: of each norm, from `group_of`.
        dtype: of the vectors.

    Raises:
        ValueError: on every rank of the group, naming one that differs.
    """
    for group in dict.fromkeys(group for group in groups if group is not None):
        shared = [norm for norm, other in zip(norms, groups, strict=True) if other is group]
        own = str(dtype), tuple(norm.num_features for norm in shared)
        if _agreed.get(shared[0]) == (group, own):
            continue
        answers: list = [None] * dist.get_world_size(group)
        dist.all_gather_object(answers, own, group)
        for rank, answer in enumerate(answers):
            if answer != own:
                raise ValueError(
                    "the ranks of a SyncBatchNorm's process group must share the statistics of the same norms: rank"
                    f" {dist.get_rank(group)} of the group has {_described(own)}, rank {rank} has {_described(answer)};"
                    " build the same model, in the same dtype, on each of them"
                )
        _agreed[shared[0]] = group, own


def _described(answer: tuple[str, tuple[int, ...]]) -> str:
    dtype, channels = answer
    return f"norms of {', '.join(map(str, channels))} channels in {dtype}"


def gathered(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The ranks' tensors, (world, *shape), in rank order; of one shape, dtype and kind of device on all of them."""
    everyone = tensor.new_empty((dist.get_world_size(group), *tensor.shape))
    dist.all_gather(list(everyone.unbind()), tensor.contiguous(), group)
    return everyone


def summed(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of the ranks' tensors, added in rank order in float64; bitwise the same on every rank."""
    return gathered(tensor, group).double().sum(0).to(tensor.dtype)
