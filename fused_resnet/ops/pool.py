"""The pooling at a ResNet's end."""

from __future__ import annotations

from torch import Tensor

from . import checks
from .library import register


def _describe(x):
    checks.feature_map("global_avg_pool", "x", x)
    return (x.shape[0], x.shape[1], 1, 1), {}


_global_avg_pool = register("global_avg_pool(Tensor x) -> Tensor", _describe)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean of x (N, C, H, W) over its pixels, accumulated in at least float32.

    Returns:
        (N, C, 1, 1) of x's dtype.

    Raises:
        ArgumentError: x is no floating-point feature map.
    """
    return _global_avg_pool(x)
