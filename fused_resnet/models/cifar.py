"""The CIFAR-10 networks of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.

A 3x3 convolution of 16 channels, three stages of n = (depth - 2) / 6 basic blocks with 16, 32 and 64 channels at the
input's resolution, a half and a quarter of it, global average pooling and a linear classifier.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..blocks import BasicBlock, OptionAShortcut, conv1x1, conv3x3
from ..blocks.stages import features
from .resnet import initialise

__all__ = [
    "CifarResNet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
]


class CifarResNet(nn.Module):
    """A CIFAR ResNet; (N, 3, H, W) of a floating dtype in, usually 32 x 32, (N, num_classes) of that dtype out.

    Args:
        depth: 6 n + 2, the number of weighted layers on the main path.
        num_classes: outputs of the classifier.
        shortcut: where the channels double, "A" subsamples the identity and pads it with zero channels (no parameters,
            the paper's choice for CIFAR), "B" projects it with a strided 1x1 convolution and a norm.
        norm_layer: makes a norm from a number of channels; nn.BatchNorm2d when None.
        zero_init_residual: start the last norm of every block at weight zero.

    Raises:
        ValueError: a depth that is not 6 n + 2 with n >= 1, or another shortcut.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        shortcut: str = "A",
        norm_layer: Callable[..., nn.Module] | None = None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (20, 32, 44, 56, 110, 1202), got {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut must be "A" (parameter-free) or "B" (1x1 convolution), got {shortcut!r}')
        self._norm_layer = nn.BatchNorm2d if norm_layer is None else norm_layer
        self.depth = depth
        self.shortcut = shortcut
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, 16)
        self.bn1 = self._norm_layer(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._make_layer(16, 16, blocks, stride=1)
        self.layer2 = self._make_layer(16, 32, blocks, stride=2)
        self.layer3 = self._make_layer(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        initialise(self, zero_init_residual)

    def _make_layer(self, inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        downsample: nn.Module | None = None
        if inplanes != planes and self.shortcut == "A":
            downsample = OptionAShortcut(inplanes, planes, stride)
        elif inplanes != planes:
            downsample = nn.Sequential(conv1x1(inplanes, planes, stride), self._norm_layer(planes))
        stage = [BasicBlock(inplanes, planes, stride, downsample, norm_layer=self._norm_layer)]
        stage += [BasicBlock(planes, planes, norm_layer=self._norm_layer) for _ in range(1, blocks)]
        return nn.Sequential(*stage)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, num_classes) of images x (N, 3, H, W), in x's dtype, or in autocast's where it is on."""
        # TorchScript cannot pass a module to a function, so a scripted model calls the modules itself.
        if torch.jit.is_scripting():
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.avgpool(self.layer3(self.layer2(self.layer1(x))))
        else:
            stem = (self.conv1, self.bn1, self.relu, None)
            x = features(stem, (self.layer1, self.layer2, self.layer3), self.avgpool, x)
        return self.fc(torch.flatten(x, 1))


def cifar_resnet20(
    num_classes: int = 10,
    shortcut: str = "A",
    norm_layer: Callable[..., nn.Module] | None = None,
    zero_init_residual: bool = False,
) -> CifarResNet:
    """ResNet-20 for CIFAR, 0.27 million parameters with option-A shortcuts; the arguments are CifarResNet's."""
    return CifarResNet(20, num_classes, shortcut, norm_layer, zero_init_residual)


def cifar_resnet32(
    num_classes: int = 10,
    shortcut: str = "A",
    norm_layer: Callable[..., nn.Module] | None = None,
    zero_init_residual: bool = False,
) -> CifarResNet:
    """ResNet-32 for CIFAR, 0.46 million parameters with option-A shortcuts; the arguments are CifarResNet's."""
    return CifarResNet(32, num_classes, shortcut, norm_layer, zero_init_residual)


def cifar_resnet44(
    num_classes: int = 10,
    shortcut: str = "A",
    norm_layer: Callable[..., nn.Module] | None = None,
    zero_init_residual: bool = False,
) -> CifarResNet:
    """ResNet-44 for CIFAR, 0.66 million parameters with option-A shortcuts; the arguments are CifarResNet's."""
    return CifarResNet(44, num_classes, shortcut, norm_layer, zero_init_residual)


def cifar_resnet56(
    num_classes: int = 10,
    shortcut: str = "A",
    norm_layer: Callable[..., nn.Module] | None = None,
    zero_init_residual: bool = False,
) -> CifarResNet:
    """ResNet-56 for CIFAR, 0.85 million parameters with option-A shortcuts; the arguments are CifarResNet's."""
    return CifarResNet(56, num_classes, shortcut, norm_layer, zero_init_residual)


def cifar_resnet110(
    num_classes: int = 10,
    shortcut: str = "A",
    norm_layer: Callable[..., nn.Module] | None = None,
    zero_init_residual: bool = False,
) -> CifarResNet:
    """ResNet-110 for CIFAR, 1.7 million parameters with option-A shortcuts; the arguments are CifarResNet's."""
    return CifarResNet(110, num_classes, shortcut, norm_layer, zero_init_residual)


def cifar_resnet1202(
    num_classes: int = 10,
    shortcut: str = "A",
    norm_layer: Callable[..., nn.Module] | None = None,
    zero_init_residual: bool = False,
) -> CifarResNet:
    """ResNet-1202 for CIFAR, 19.4 million parameters with option-A shortcuts; the arguments are CifarResNet's."""
    return CifarResNet(1202, num_classes, shortcut, norm_layer, zero_init_residual)
