"""What a caller promises the backends beyond an op's arguments, and what they may keep for as long as it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

COUNTS = 1024  # more than the tiles that blocks ever share: these are fewer than a GPU has multiprocessors

_kept: ContextVar[dict[torch.device, Tensor] | None] = ContextVar("kept", default=None)


@contextmanager
def constant_weights() -> Iterator[None]:
    """Inside, nothing that an op follows on the GPU writes a convolution's weight, and ops follow one another.

    A kernel may then load its weights while the one before it still runs.  It holds for a captured graph of a frozen
    model, and not for single calls: the last kernel before one may be a cast or an optimizer's step.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def weights_are_constant() -> bool:
    """Whether `constant_weights` is promised here."""
    return _kept.get() is not None


def zero_counts(count: int, device: torch.device) -> Tensor:
    """`count` int32 zeros at least, for a kernel that leaves them zero: its own, or all of `constant_weights`'.

    Own ones are cleared by a kernel of their own, which would stand between one that waits for the weights alone and
    the one before it.
    """
    kept = _kept.get()
    if kept is None or count > COUNTS:
        return torch.zeros(count, dtype=torch.int32, device=device)
    if device not in kept:
        kept[device] = torch.zeros(COUNTS, dtype=torch.int32, device=device)
    return kept[device]
