"""The networks residual networks were introduced against, as short as they can be written; for counting.

Sources: LeCun et al. 1998 (LeNet-5), Krizhevsky 2014 (the single-tower AlexNet), Simonyan and Zisserman 2014 (VGG),
He et al. 2015, figure 3 (the plain network with 34 layers).
"""

from torch import nn

VGG_STAGES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)]


def lenet5(num_classes: int = 10) -> nn.Sequential:
    """LeNet-5 for (N, 1, 32, 32), every feature map of the second convolution connected to all of the first's."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, num_classes),
    )


def alexnet(num_classes: int = 1000) -> nn.Sequential:
    """AlexNet with one tower, as in torchvision, for (N, 3, 224, 224)."""
    return nn.Sequential(
        *_conv(3, 64, 11, 4, 2),
        nn.MaxPool2d(3, 2),
        *_conv(64, 192, 5, 1, 2),
        nn.MaxPool2d(3, 2),
        *_conv(192, 384, 3, 1, 1),
        *_conv(384, 256, 3, 1, 1),
        *_conv(256, 256, 3, 1, 1),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(256 * 36, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),
    )


def vgg(depth: int, num_classes: int = 1000) -> nn.Sequential:
    """VGG-16 or VGG-19 without batch norm, for (N, 3, 224, 224)."""
    if depth not in VGG_STAGES:
        raise ValueError(f"VGG has no depth {depth}; expected one of {', '.join(map(str, VGG_STAGES))}")
    layers: list[nn.Module] = []
    channels = 3
    for repeats, width in zip(VGG_STAGES[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(repeats):
            layers += _conv(channels, width, 3, 1, 1)
            channels = width
        layers.append(nn.MaxPool2d(2))
    classifier = [
        nn.Linear(512 * 49, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(4096, num_classes),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *classifier)


def plain34(num_classes: int = 1000) -> nn.Sequential:
    """ResNet-34 without its skips: the same 33 convolutions on the residual branches and stem, and the classifier."""

    def unit(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    layers = [*unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for index in range(2 * blocks):
            layers += unit(channels, width, 3, 2 if stage > 0 and index == 0 else 1)
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
