"""Random tensors for the cases of parity tests, and the layouts that they may have in memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _misaligned(x: Tensor) -> Tensor:
    """Starts one element into its storage."""
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return flat[1:].view(x.shape).copy_(x)


def _misaligned_channels_last(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return flat[1:].view(n, h, w, c).permute(0, 3, 1, 2).copy_(x)


def _sliced(x: Tensor) -> Tensor:
    """Every second element of a larger tensor in each dimension, and `x[1:]` of the batch."""
    n, c, h, w = x.shape
    whole = torch.full((n + 1, 2 * c, 2 * h, 2 * w), torch.nan, dtype=x.dtype, device=x.device)
    part = whole[1:, ::2, ::2, ::2]
    part.copy_(x)
    return part


def _expanded(x: Tensor) -> Tensor:
    """One image for the whole batch, one column for the whole width: strides of zero."""
    return x[:1, :, :, :1].expand_as(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": lambda x: x.contiguous(),
    "channels_last": channels_last,
    "misaligned": _misaligned,
    "misaligned_channels_last": _misaligned_channels_last,
    "sliced": _sliced,
    "expanded": _expanded,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


class Draw:
    """Random tensors, the same for the same case; values of a given tensor do not depend on the device."""

    def __init__(self, case_id: str, dtype: torch.dtype, device: torch.device | str) -> None:
        self.generator = torch.Generator().manual_seed(zlib.crc32(case_id.encode()))
        self.dtype, self.device = dtype, device

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(size, generator=self.generator).to(self.device, dtype or self.dtype)

    def positive(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uniform in [0.5, 1.5)."""
        return (0.5 + torch.rand(size, generator=self.generator)).to(self.device, dtype or self.dtype)
