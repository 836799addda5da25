"""torchvision's ResNets, parameter for parameter: the same children, state-dict keys, initialisation and arguments.

The network is the one of He et al., "Deep Residual Learning for Image Recognition" (2015), with the stride on a
bottleneck's 3x3 convolution; the ResNeXt variants are Xie et al. (2016), the wide ones Zagoruyko and Komodakis (2016).
Only what computes differs: each block, the stem and the pooling take the fused path where it is valid.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..blocks import BasicBlock, Bottleneck, conv1x1
from ..blocks.stages import features
from .weights import build_with_weights, fix, torchvision_builder

__all__ = [
    "ResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """An ImageNet ResNet; (N, 3, H, W) of a floating dtype in, (N, num_classes) of that dtype out.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks in each of the four stages.
        num_classes: outputs of the classifier.
        zero_init_residual: start the last BN of every block at weight zero, so that the block is an identity at first.
        groups: groups of the 3x3 convolutions (Bottleneck only).
        width_per_group: channels per group in the first stage, 64 for a plain ResNet.
        replace_stride_with_dilation: for each of the last three stages, whether to dilate instead of striding.
        norm_layer: makes a norm from a number of channels; nn.BatchNorm2d when None.

    Raises:
        ValueError, NotImplementedError: as torchvision, with its words.
    """

    def __init__(
        self,
        block: Block,
        layers: list[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: list[bool] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        dilate = [False, False, False] if replace_stride_with_dilation is None else replace_stride_with_dilation
        if len(dilate) != 3:
            raise ValueError(f"replace_stride_with_dilation should be None or a 3-element tuple, got {dilate}")
        self._norm_layer = nn.BatchNorm2d if norm_layer is None else norm_layer
        self.inplanes = 64
        self.dilation = 1
        self.groups = groups
        self.base_width = width_per_group
        # Modules are made in torchvision's order: it decides which random numbers each of them gets.
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2, dilate=dilate[0])
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2, dilate=dilate[1])
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2, dilate=dilate[2])
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        initialise(self, zero_init_residual)

    def _make_layer(
        self, block: Block, planes: int, blocks: int, stride: int = 1, dilate: bool = False
    ) -> nn.Sequential:
        """One stage; a dilated one keeps its resolution, and its first block still has the stage before's dilation."""
        first_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        out_channels = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != out_channels:
            downsample = nn.Sequential(conv1x1(self.inplanes, out_channels, stride), self._norm_layer(out_channels))
        common = {"groups": self.groups, "base_width": self.base_width, "norm_layer": self._norm_layer}
        stage = [block(self.inplanes, planes, stride, downsample, dilation=first_dilation, **common)]
        self.inplanes = out_channels
        for _ in range(1, blocks):
            stage.append(block(out_channels, planes, dilation=self.dilation, **common))
        return nn.Sequential(*stage)

    def _forward_impl(self, x: Tensor) -> Tensor:
        # TorchScript cannot pass a module to a function, so a scripted model calls the modules itself.
        if torch.jit.is_scripting():
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            x = self.avgpool(x)
        else:
            stem = (self.conv1, self.bn1, self.relu, self.maxpool)
            x = features(stem, (self.layer1, self.layer2, self.layer3, self.layer4), self.avgpool, x)
        return self.fc(torch.flatten(x, 1))

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, num_classes) of images x (N, 3, H, W), in x's dtype, or in autocast's where it is on."""
        return self._forward_impl(x)


def initialise(model: nn.Module, zero_init_residual: bool) -> None:
    """He et al.'s initialisation, as torchvision does it: convolutions normal with fan-out, norms weight 1 and bias 0.

    Args:
        model: its convolutions and norms are set in the order of `model.modules()`.
        zero_init_residual: set the weight of the last norm of every block to zero, where it has one.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.constant_(module.weight, 1)
            nn.init.constant_(module.bias, 0)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                if last.weight is not None:
                    nn.init.constant_(last.weight, 0)


def _resnet(arch: str, block: Block, layers: list[int], weights: Any, progress: bool, **kwargs: Any) -> ResNet:
    if weights is None:
        return ResNet(block, layers, **kwargs)
    return build_with_weights(arch, weights, progress, kwargs, partial(ResNet, block, layers))


@torchvision_builder
def resnet18(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-18, 11.7 million parameters."""
    return _resnet("resnet18", BasicBlock, [2, 2, 2, 2], weights, progress, **kwargs)


@torchvision_builder
def resnet34(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-34, 21.8 million parameters."""
    return _resnet("resnet34", BasicBlock, [3, 4, 6, 3], weights, progress, **kwargs)


@torchvision_builder
def resnet50(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-50 (v1.5), 25.6 million parameters."""
    return _resnet("resnet50", Bottleneck, [3, 4, 6, 3], weights, progress, **kwargs)


@torchvision_builder
def resnet101(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-101 (v1.5), 44.5 million parameters."""
    return _resnet("resnet101", Bottleneck, [3, 4, 23, 3], weights, progress, **kwargs)


@torchvision_builder
def resnet152(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-152 (v1.5), 60.2 million parameters."""
    return _resnet("resnet152", Bottleneck, [3, 8, 36, 3], weights, progress, **kwargs)


@torchvision_builder
def resnext50_32x4d(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNeXt-50 of 32 groups of 4 channels, 25.0 million parameters."""
    return _resnet(
        "resnext50_32x4d", Bottleneck, [3, 4, 6, 3], weights, progress, **fix(kwargs, groups=32, width_per_group=4)
    )


@torchvision_builder
def resnext101_32x8d(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNeXt-101 of 32 groups of 8 channels, 88.8 million parameters."""
    return _resnet(
        "resnext101_32x8d", Bottleneck, [3, 4, 23, 3], weights, progress, **fix(kwargs, groups=32, width_per_group=8)
    )


@torchvision_builder
def resnext101_64x4d(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNeXt-101 of 64 groups of 4 channels, 83.5 million parameters."""
    return _resnet(
        "resnext101_64x4d", Bottleneck, [3, 4, 23, 3], weights, progress, **fix(kwargs, groups=64, width_per_group=4)
    )


@torchvision_builder
def wide_resnet50_2(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-50 with 3x3 convolutions twice as wide, 68.9 million parameters."""
    return _resnet("wide_resnet50_2", Bottleneck, [3, 4, 6, 3], weights, progress, **fix(kwargs, width_per_group=128))


@torchvision_builder
def wide_resnet101_2(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> ResNet:
    """ResNet-101 with 3x3 convolutions twice as wide, 126.9 million parameters."""
    return _resnet("wide_resnet101_2", Bottleneck, [3, 4, 23, 3], weights, progress, **fix(kwargs, width_per_group=128))
