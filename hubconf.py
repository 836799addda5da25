"""torch.hub's entry points: `torch.hub.load("<owner>/fused_resnet", "resnet50", weights="DEFAULT")`."""

from fused_resnet.models import (  # noqa: F401 - what torch.hub lists
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

dependencies = ["torch", "numpy"]
