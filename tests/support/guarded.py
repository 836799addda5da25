"""Buffers with canaries around them, for kernels whose stray stores and loads would otherwise go unseen."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 64  # elements, a multiple of 16 bytes in every dtype
SENTINEL = -777.0


class GuardedOutput:
    """Dense NHWC storage of `size` (N, C, H, W) to write to, NaN inside and sentinels on both sides."""

    def __init__(self, size: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        n, c, h, w = size
        self._count = n * c * h * w
        self._storage = torch.full((self._count + 2 * MARGIN,), SENTINEL, dtype=dtype, device=device)
        inside = self._storage[MARGIN : MARGIN + self._count]
        inside.fill_(torch.nan)
        self.tensor = inside.view(n, h, w, c).permute(0, 3, 1, 2)

    def check(self) -> None:
        """Raises AssertionError where something was written outside of the tensor."""
        before, after = self._storage[:MARGIN], self._storage[MARGIN + self._count :]
        assert (before == SENTINEL).all(), "stored before the output"
        assert (after == SENTINEL).all(), "stored behind the output"


def amid_nans(tensor: Tensor) -> Tensor:
    """A copy of `tensor`, channels_last if 4-D, with NaN before and behind it: a stray load shows in the result."""
    if tensor.dim() == 4:
        n, c, h, w = tensor.shape
        dense = tensor.permute(0, 2, 3, 1)
    else:
        dense = tensor
    storage = torch.full((tensor.numel() + 2 * MARGIN,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    inside = storage[MARGIN : MARGIN + tensor.numel()].view(dense.shape).copy_(dense)
    return inside.permute(0, 3, 1, 2) if tensor.dim() == 4 else inside
