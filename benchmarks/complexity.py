"""Parameters and multiply-adds of the ResNet family beside the networks it was introduced against.

    python -m benchmarks.complexity --json complexity.json

Counted by PyTorch's FlopCounterMode on the meta device: nothing is allocated or computed.  It takes convolutions and
matrix products and counts a multiply-add as two; the literature's "FLOPs" are multiply-adds, as in the table.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fused_resnet
from fused_resnet.blocks import OptionAShortcut
from fused_resnet.models import CIFAR_MODELS, TORCHVISION_MODELS

from .record import environment, report
from .subjects.classic_networks import alexnet, lenet5, plain34, vgg

# Multiply-adds in billions as their authors give them (He et al. 2015, table 1 and figure 3), to hold ours against.
PUBLISHED_GMACS = {
    "resnet18": 1.8,
    "resnet34 (option A)": 3.6,
    "plain34": 3.6,
    "vgg16": 15.3,
    "resnet50": 3.8,
    "resnet101": 7.6,
    "resnet152": 11.3,
    "vgg19": 19.6,
}
NOTES = [
    "published: He et al. 2015, table 1 and figure 3.  Its bottlenecks stride in the first 1x1 convolution, these in",
    "the 3x3, so resnet50, 101 and 152 count more here; its 34-layer network has parameter-free shortcuts (option A).",
]


def resnet34_option_a() -> nn.Module:
    """The paper's ResNet-34: shortcuts that subsample and pad with zeros where torchvision's project."""
    network = fused_resnet.resnet34()
    for block in network.modules():
        projection = getattr(block, "downsample", None)
        if projection is not None:
            convolution = projection[0]
            block.downsample = OptionAShortcut(convolution.in_channels, convolution.out_channels, convolution.stride[0])
    return network


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]:
    """Name -> (builder, shape of one input image)."""
    image = (3, 224, 224)
    found = {name: (getattr(fused_resnet, name), image) for name in TORCHVISION_MODELS}
    found["resnet34 (option A)"] = (resnet34_option_a, image)
    found |= {
        "plain34": (plain34, image),
        "vgg16": (partial(vgg, 16), image),
        "vgg19": (partial(vgg, 19), image),
        "alexnet": (alexnet, image),
    }
    found["lenet5"] = (lenet5, (1, 32, 32))
    return found | {name: (getattr(fused_resnet, name), (3, 32, 32)) for name in CIFAR_MODELS}


def count(build: Callable[[], nn.Module], image: tuple[int, int, int]) -> dict[str, object]:
    """Parameters, and operations and multiply-adds for one image."""
    with torch.device("meta"):
        network = build().eval()
        images = torch.empty(1, *image)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    flops = counter.get_total_flops()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops": flops,
        "gmacs": flops / 2e9,
        "input": list(image),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.complexity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--json", help="write the figures to this file")
    options = arguments.parse_args(argv)
    figures = {}
    for name, (build, image) in networks().items():
        figures[name] = {**count(build, image), "published_gmacs": PUBLISHED_GMACS.get(name)}
    table = [
        [
            name,
            " x ".join(map(str, row["input"])),
            f"{row['parameters'] / 1e6:.3f}",
            f"{row['gmacs']:.3f}" if row["gmacs"] >= 0.01 else f"{row['gmacs']:.5f}",
            report.number(row["published_gmacs"]),
            f"{row['gmacs'] / figures['vgg19']['gmacs']:.3f}",
        ]
        for name, row in figures.items()
    ]
    report.show_table(
        "Parameters and multiply-adds of one image",
        ["network", "input", "parameters (M)", "GMACs", "published", "of VGG-19"],
        table,
        NOTES,
    )
    if options.json:
        document = {
            "schema": 1,
            "benchmark": "complexity",
            "torch": torch.__version__,
            "commit": environment.commit(),
            "networks": figures,
        }
        report.write_json(options.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
