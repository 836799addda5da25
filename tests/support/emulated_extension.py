"""The stand-in for `fused_resnet._C` on a machine without a GPU: its launchers and kernels, emulated on CPU tensors.

It takes what the compiled extension takes, in the same order, and raises what that raises, so that the backend's own
Python runs unchanged above it.  Buffers that the backend allocates are guarded: NaN inside, sentinels on both sides.
"""

from __future__ import annotations

import ctypes
import functools
import struct

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

PASSES = "kernels/passes/host.cpp"
# The source of csrc/ that offers each of these kernels; PASSES offers the others.
LIBRARIES = {
    "conv3x3_halo_act": "kernels/conv3x3/forward/host.cpp",
    "conv3x3_halo_stats": "kernels/conv3x3/forward/host.cpp",
    "conv3x3_halo_split_act": "kernels/conv3x3/split/host.cpp",
    "conv3x3_halo_dgrad": "kernels/conv3x3/dgrad/host.cpp",
    "conv3x3_halo_wgrad": "kernels/conv3x3/wgrad/host.cpp",
    "bottleneck_inference": "kernels/bottleneck/host.cpp",
    "conv1x1_act": "kernels/conv1x1/forward/host.cpp",
    "conv1x1_stats": "kernels/conv1x1/forward/host.cpp",
    "conv1x1_products": "kernels/conv1x1/products/host.cpp",
    "conv1x1_gram": "kernels/conv1x1/gram/host.cpp",
    "conv1x1_gram_exact": "kernels/conv1x1/gram/host.cpp",
    "conv1x1_gram_finish": "kernels/conv1x1/gram_finish/host.cpp",
    "conv1x1_backward": "kernels/conv1x1/backward/host.cpp",
    "conv1x1_dgrad": "kernels/conv1x1/dgrad/host.cpp",
    "conv1x1_wgrad": "kernels/conv1x1/wgrad/host.cpp",
    "stem_act": "kernels/stem/forward/host.cpp",
    "stem_stats": "kernels/stem/forward/host.cpp",
    "stem_wgrad": "kernels/stem/wgrad/host.cpp",
}
# Functions of extents: the library, and whether the answer depends on the GPU.
QUESTIONS = {
    "conv3x3_halo_split_tiles": ("kernels/conv3x3/split/host.cpp", False),
    "conv3x3_halo_splits": ("kernels/conv3x3/split/host.cpp", True),
    "conv3x3_halo_wgrad_splits": ("kernels/conv3x3/wgrad/host.cpp", True),
    "conv1x1_partial_rows": ("kernels/conv1x1/forward/host.cpp", False),
    "conv1x1_split_tiles": ("kernels/conv1x1/forward/host.cpp", False),
    "conv1x1_splits": ("kernels/conv1x1/forward/host.cpp", True),
    "conv1x1_products_rows": ("kernels/conv1x1/products/host.cpp", True),
    "conv1x1_gram_rows": ("kernels/conv1x1/gram/host.cpp", True),
    "conv1x1_gram_exact_rows": ("kernels/conv1x1/gram/host.cpp", False),
    "conv1x1_gram_finish_rows": ("kernels/conv1x1/gram_finish/host.cpp", True),
    "conv1x1_backward_rows": ("kernels/conv1x1/backward/host.cpp", True),
    "conv1x1_dgrad_partial_rows": ("kernels/conv1x1/dgrad/host.cpp", False),
    "conv1x1_wgrad_splits": ("kernels/conv1x1/wgrad/host.cpp", True),
    "stem_partial_rows": ("kernels/stem/forward/host.cpp", False),
    "stem_wgrad_splits": ("kernels/stem/wgrad/host.cpp", True),
}
TAKES_ROWS = tuple(f"kernels/conv1x1/{name}/host.cpp" for name in ("backward", "products", "gram", "gram_finish"))
ERRORS = {"ValueError": ValueError, "RuntimeError": RuntimeError}


class EmulatedExtension:
    """`seed` shuffles the order in which warps run, `workers` run blocks at the same time.

    A persistent kernel finds a GPU of `blocks` multiprocessors.
    """

    def __init__(self, seed: int = 0, workers: int = 1, blocks: int = 2) -> None:
        self.seed, self.workers, self.blocks = seed, workers, blocks

    def __getattr__(self, kernel: str):
        if kernel in QUESTIONS:
            return functools.partial(self._ask, kernel)
        return functools.partial(self._convolve if kernel in LIBRARIES else self._launch, kernel)

    def _ask(self, question: str, *extents: int) -> int:
        library, of_the_gpu = QUESTIONS[question]
        function = emulated.library(library)[question]
        function.restype = ctypes.c_int64
        return function(*extents, *([self.blocks] if of_the_gpu else []))

    def _launch(self, kernel: str, *arguments: int | float) -> None:
        bits = [struct.unpack("q", struct.pack("d", a))[0] if isinstance(a, float) else int(a) for a in arguments]
        crossing = (ctypes.c_int64 * len(bits))(*bits)
        self._call(PASSES, "run_pointwise", kernel.encode(), crossing, len(bits), self.seed, self.workers)

    def _convolve(self, kernel: str, *arguments: int | float) -> None:
        *before, _stream = arguments
        crossing = [ctypes.c_float(a) if isinstance(a, float) else ctypes.c_int64(a) for a in before]
        library = LIBRARIES[kernel]
        # an argument of these says how many blocks there are
        blocks = [] if library in TAKES_ROWS or library.endswith("wgrad/host.cpp") else [self.blocks]
        self._call(library, f"run_{kernel}", *crossing, *blocks, self.seed, self.workers)

    def _call(self, library: str, function: str, *arguments: object) -> None:
        called = emulated.library(library)[function]
        called.restype = ctypes.c_char_p
        message = called(*arguments)
        if message is not None:
            kind, _, words = message.decode().partition(": ")
            raise ERRORS[kind](words)


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
