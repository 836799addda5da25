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
from .models import (
    CIFAR_MODELS,
    TORCHVISION_MODELS,
    CifarResNet,
    ResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    cifar_resnet1202,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from .ops import use_backend

__all__ = [
    "ArgumentError",
    "BackendError",
    "BasicBlock",
    "Bottleneck",
    "CIFAR_MODELS",
    "CifarResNet",
    "OptionAShortcut",
    "ResNet",
    "TORCHVISION_MODELS",
    "__version__",
    "cifar_resnet110",
    "cifar_resnet1202",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "explain",
    "freeze",
    "models",
    "ops",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "use_backend",
    "wide_resnet101_2",
    "wide_resnet50_2",
]
