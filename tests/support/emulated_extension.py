"""The stand-in for `fused_resnet._C` on a machine without a GPU: its launchers and kernels, emulated on CPU tensors.

It takes what the compiled extension takes, in the same order, and raises what that raises, so that the backend's own
Python runs unchanged above it.  Buffers that the backend allocates are guarded: NaN inside, sentinels on both sides.
"""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import Tensor

from fused_resnet.backends.cuda import (
    conv1x1,
    conv1x1_gradients,
    convolutions,
    gram_matrix,
    images,
    inference,
    launch,
    passes,
)

from . import emulated
from .guarded import MARGIN, SENTINEL, GuardedOutput

# What the host files offer, each with the file that does.
SOURCES = {
    name: str(host.relative_to(emulated.CSRC))
    for host in sorted(emulated.CSRC.glob("kernels/**/host.cpp"))
    for name in re.findall(r"HOST_ROW\((\w+)\)", host.read_text())
}
QUESTIONS = [name for name in SOURCES if name.endswith(("_rows", "_tiles", "_splits"))]
ERRORS = {"ValueError": ValueError, "RuntimeError": RuntimeError}


class EmulatedExtension:
    """`seed` shuffles the order in which warps run, `workers` run blocks at the same time.

    A persistent kernel finds a GPU of `blocks` multiprocessors.
    """

    def __init__(self, seed: int = 0, workers: int = 1, blocks: int = 2) -> None:
        self.seed, self.workers, self.blocks = seed, workers, blocks

    def __getattr__(self, name: str):
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: int | float) -> int:
        row = getattr(emulated.library(SOURCES[name]), name)
        if name not in QUESTIONS:
            arguments = arguments[:-1]  # the stream
        try:
            return row(*arguments, self.blocks, self.seed, self.workers)
        except emulated.EmulationError as error:
            kind, _, words = str(error).partition(": ")
            raise ERRORS[kind](words) from None


class GuardedFloats:
    """A float32 buffer with sentinels on both sides, NaN inside where a kernel has to write."""

    def __init__(self, *size: int) -> None:
        count = torch.Size(size).numel()
        self._storage = torch.full((count + 2 * MARGIN,), SENTINEL)
        self._inside = slice(MARGIN, MARGIN + count)
        self._storage[self._inside] = torch.nan
        self.tensor = self._storage[self._inside].view(size)

    def check(self) -> None:
        """Raises AssertionError where something was written outside of the tensor."""
        outside = (self._storage[: self._inside.start], self._storage[self._inside.stop :])
        assert all((part == SENTINEL).all() for part in outside), "stored outside of the numbers"


class Guards:
    """What the backend allocates, each with its guard."""

    def __init__(self) -> None:
        self.made: list[GuardedOutput | GuardedFloats] = []

    def map_like(self, like: Tensor, size: tuple[int, int, int, int], dtype: torch.dtype | None = None) -> Tensor:
        if dtype == torch.uint8:  # has no NaN to fill it with: guarded by maps of half as many elements
            whole = self.map_like(like, (size[0], size[1] // 2, *size[2:]))
            n, c, h, w = size
            return whole.permute(0, 2, 3, 1).reshape(-1).view(torch.uint8).view(n, h, w, c).permute(0, 3, 1, 2)
        self.made.append(GuardedOutput(size, dtype or like.dtype))
        return self.made[-1].tensor

    def floats_like(self, like: Tensor, *size: int) -> Tensor:
        self.made.append(GuardedFloats(*size))
        return self.made[-1].tensor

    def check(self) -> None:
        for guard in self.made:
            guard.check()


def install(monkeypatch: pytest.MonkeyPatch, extension: EmulatedExtension) -> Guards:
    """Puts the stand-in in the place of the extension; returns the guards, to be checked at the end."""
    guards = Guards()
    monkeypatch.setattr(launch, "extension", lambda: extension)
    monkeypatch.setattr(launch, "_stream", lambda device: 0)
    monkeypatch.setattr(convolutions, "multiprocessors", lambda device: extension.blocks)
    for module in (images, inference, passes, conv1x1, conv1x1_gradients, gram_matrix, convolutions):
        monkeypatch.setattr(module, "map_like", guards.map_like)
        if module is not inference:
            monkeypatch.setattr(module, "floats_like", guards.floats_like)
    return guards
