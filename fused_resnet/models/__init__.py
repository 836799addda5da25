"""The networks: torchvision's ten ResNets and the CIFAR family of the ResNet paper."""

from . import cifar, resnet
from .cifar import *  # noqa: F403
from .resnet import *  # noqa: F403

TORCHVISION_MODELS: tuple[str, ...] = tuple(name for name in resnet.__all__ if name != "ResNet")
CIFAR_MODELS: tuple[str, ...] = tuple(name for name in cifar.__all__ if name != "CifarResNet")

__all__ = [*resnet.__all__, *cifar.__all__, "CIFAR_MODELS", "TORCHVISION_MODELS"]
