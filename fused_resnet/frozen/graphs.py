"""CUDA graphs of a frozen model: one for each kind of input, captured at its first call and replayed at later ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.promises import constant_weights
from ..errors import ArgumentError
from ..ops import dispatch

MOST = 8  # graphs that are kept, each with its own feature maps; the one captured first goes first
WARM_UP = 3  # calls before the capture, in which kernels are compiled and libraries choose


def _precision() -> tuple[object, ...]:
    """Torch's settings that decide what a model computes in."""
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return autocast, torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@dataclass
class Captured:
    """A graph and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor


class Graphs:
    """`function`, replayed.  Not for several streams at a time: a graph's memory is its own, and there is one of it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._captured: dict[tuple, Captured] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """`function(x)`, in memory that is the caller's.

        Raises:
            ArgumentError: x is not on a CUDA device.
        """
        if x.device.type != "cuda":
            raise ArgumentError(
                f"freeze(model, graph=True) replays CUDA graphs, and the input is on {x.device}; move model and input"
                " to a GPU, or freeze without graph"
            )
        key = tuple(x.shape), x.dtype, x.device, *_precision(), dispatch.current()
        captured = self._captured.get(key)
        if captured is None:
            captured = self._capture(x)
            self._captured = {**dict(list(self._captured.items())[1 - MOST :]), key: captured}
        captured.x.copy_(x)
        captured.graph.replay()
        return captured.y.clone()

    def _capture(self, x: Tensor) -> Captured:
        with torch.cuda.device(x.device):
            with torch.inference_mode(False):  # a later call may copy into it outside of inference mode
                x = x.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._function(x)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph), constant_weights():
                y = self._function(x)
        return Captured(graph, x, y)

    def forget(self) -> None:
        """To be called when the memory of the parameters changes."""
        self._captured = {}
