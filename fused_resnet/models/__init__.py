"""The networks: torchvision's ten ResNets and the CIFAR family of the ResNet paper."""

from . import cifar, resnet
from .cifar import (
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    cifar_resnet1202,
)
from .resnet import (
    ResNet,
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

TORCHVISION_MODELS: tuple[str, ...] = tuple(name for name in resnet.__all__ if name != "ResNet")
CIFAR_MODELS: tuple[str, ...] = tuple(name for name in cifar.__all__ if name != "CifarResNet")

__all__ = [
    "CIFAR_MODELS",
    "CifarResNet",
    "ResNet",
    "TORCHVISION_MODELS",
    "cifar_resnet110",
    "cifar_resnet1202",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "wide_resnet101_2",
    "wide_resnet50_2",
]
