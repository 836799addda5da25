"""fused_resnet: residual networks whose convolutions carry their batch norm, ReLU and skip-add with them.

`fused_resnet.resnet50()` and its nine siblings are torchvision's models in every respect but speed; `freeze(model)`
makes an inference-only copy; `explain(model, input)` says which path each block takes; `use_backend(name)` asks for one
backend by name.
"""

from . import models, ops
from ._version import __version__
from .blocks import BasicBlock, Bottleneck, OptionAShortcut
from .errors import ArgumentError, BackendError
from .explain import explain
from .freeze import freeze
from .models import *  # noqa: F403 - the builders, listed in models.__all__
from .ops import use_backend

__all__ = [
    *models.__all__,
    "ArgumentError",
    "BackendError",
    "BasicBlock",
    "Bottleneck",
    "OptionAShortcut",
    "__version__",
    "explain",
    "freeze",
    "models",
    "ops",
    "use_backend",
]
