"""Blocks and networks to be metered: ours beside torchvision's, with the same weights, channels_last, in training."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_resnet
from fused_resnet._torchvision import import_torchvision
from fused_resnet.blocks import conv1x1
from fused_resnet.blocks.stages import stages_forward

from ..record import environment
from .candidates import Network
from .photos import batch_of_photographs

# With oneDNN in torch 2.13, the backward pass of a strided 1x1 convolution of 4 channels, channels_last, crashes.
MIN_PLANES = 16
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class BlockCase:
    """A block of a ResNet.

    T, its unit, is one map of the block's own width at its output's size, so a stride-1 identity bottleneck is 4T wide
    at both ends.  Goals are in T: forward, backward, saved; None where there is none.

    inside: the block stands in a chain of its like, as most of a network's do, whose gradients arrive masked: what it
    adds to a chain of two.
    """

    name: str
    bottleneck: bool
    shortcut: str  # identity, projection or option A
    stride: int = 1
    inputs: float = 1.0  # input channels over the block's width
    goal: tuple[float | None, float | None, float | None] | None = None
    inside: bool = False


CASES = (
    BlockCase("bottleneck, identity, inside a chain", True, "identity", inputs=4, goal=(17, 30, 6), inside=True),
    BlockCase("bottleneck, identity", True, "identity", inputs=4, goal=(17, None, 6)),
    BlockCase("bottleneck, projection", True, "projection"),
    BlockCase("bottleneck, projection, stride 2", True, "projection", 2, 2),
    BlockCase("basic, identity, inside a chain", False, "identity", goal=(7, 16, None), inside=True),
    BlockCase("basic, identity", False, "identity", goal=(7, None, None)),
    BlockCase("basic, projection, stride 2", False, "projection", 2, 0.5),
    BlockCase("basic, option A, stride 2", False, "option A", 2, 0.5),
)


@dataclass(frozen=True)
class BlockPair:
    """Our block and torchvision's with one state dict, an input, the output's gradient, and the bytes of one T."""

    ours: nn.Module
    eager: nn.Module
    x: Tensor
    grad: Tensor
    unit: int


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    """In training mode, on the device, channels_last."""
    if not shapes_only():
        return module.to(device=device, memory_format=torch.channels_last).train()
    for part in module.modules():  # `to` cannot swap fake parameters
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.dim() == 4:
                setattr(part, name, nn.Parameter(parameter.detach().contiguous(memory_format=torch.channels_last)))
    return module.train()


def _shortcut(case: BlockCase, inplanes: int, outplanes: int) -> nn.Module | None:
    if case.shortcut == "identity":
        return None
    if case.shortcut == "option A":
        return fused_resnet.OptionAShortcut(inplanes, outplanes, case.stride)
    return nn.Sequential(conv1x1(inplanes, outplanes, case.stride), nn.BatchNorm2d(outplanes))


class _Chain(nn.Sequential):
    """Our blocks as a network's forward pass would run them."""

    def forward(self, x: Tensor) -> Tensor:
        return stages_forward([nn.Sequential(*self)], x)


def lengths(case: BlockCase) -> tuple[int, ...]:
    """Of the chains to be metered; the first's figures less the second's, if there is one, are the block's."""
    return (3, 2) if case.inside else (1,)


def block_pair(
    case: BlockCase,
    planes: int,
    batch: int,
    extent: int,
    device: torch.device,
    amp: torch.dtype | None = None,
    length: int = 1,
) -> BlockPair:
    """The blocks of a case, `planes` wide with `extent` x `extent` outputs, `length` in a row; maps are in autocast's
    dtype."""
    inplanes, stride = round(case.inputs * planes), case.stride
    block_type = fused_resnet.Bottleneck if case.bottleneck else fused_resnet.BasicBlock
    outplanes = planes * block_type.expansion

    def build(block_class: Callable[..., nn.Module]) -> list[nn.Module]:
        return [block_class(inplanes, planes, stride, _shortcut(case, inplanes, outplanes)) for _ in range(length)]

    ours = _Chain(*build(block_type))
    torchvision = import_torchvision()
    if torchvision is None:
        # The trace calls every module by itself: torchvision's forward without torchvision.
        eager = nn.Sequential(*map(torch.fx.symbolic_trace, build(block_type)))
    else:
        eager = nn.Sequential(*build(getattr(torchvision.models.resnet, block_type.__name__)))
    eager.load_state_dict(ours.state_dict())
    make = {"dtype": amp or torch.float32, "device": device}
    x = torch.randn(batch, inplanes, extent * stride, extent * stride, **make)
    grad = torch.randn(batch, outplanes, extent, extent, **make)
    layout = {"memory_format": torch.channels_last}
    unit = batch * planes * extent * extent * x.element_size()
    return BlockPair(
        _placed(ours, device), _placed(eager, device), x.contiguous(**layout), grad.contiguous(**layout), unit
    )


def model_pair(name: str, seed: int, device: torch.device) -> dict[str, Callable[[], nn.Module]]:
    """Builders of the network by row: fused_resnet's and the baseline's, channels_last, in training mode."""
    network = Network(name, seed)
    if shapes_only():  # a fake state dict cannot be loaded
        if network.torchvision is None:
            eager = lambda: torch.fx.symbolic_trace(network.builder())  # noqa: E731
        else:
            eager = getattr(network.torchvision.models, name)
        return {
            "fused_resnet": lambda: _placed(network.builder(), device),
            network.baseline_name: lambda: _placed(eager(), device),
        }

    return {
        "fused_resnet": lambda: _placed(network.ours(), device),
        network.baseline_name: lambda: _placed(network.baseline(), device),
    }


def baseline_name() -> str:
    """What the eager rows are called: torchvision, or the reference that stands in for it."""
    return "torchvision" if import_torchvision() else "reference"


def shapes_only() -> bool:
    """Whether tensors have shapes and no elements here."""
    return detect_fake_mode() is not None


def counting(options: argparse.Namespace) -> AbstractContextManager:
    """What the figures are counted under: the real thing, or, with --shapes, tensors without elements."""
    if not options.shapes:
        return nullcontext()
    if options.device != "cpu":
        raise ValueError(f"--shapes computes nothing, on no device; got --device {options.device}")
    return FakeTensorMode()


def images_of(options: argparse.Namespace, device: torch.device) -> Tensor:
    """Photographs, or with --shapes their shape, channels_last."""
    if shapes_only():
        images = torch.empty(options.batch, 3, options.size, options.size)
    else:
        images = batch_of_photographs(options.batch, options.size, options.seed).to(device)
    return images.contiguous(memory_format=torch.channels_last)


def add_meter_arguments(arguments: argparse.ArgumentParser) -> None:
    """The options that the meters share."""
    add = arguments.add_argument
    add("--model", nargs="*", default=["resnet50", "resnet18"], help="whole networks (default: resnet50 resnet18)")
    add("--batch", type=int, default=8, help="images (default: 8)")
    add("--size", type=int, default=224, help="side of a network's square input in pixels (default: 224)")
    add("--planes", type=int, default=64, help="width of the single blocks in channels (default: 64)")
    add("--extent", type=int, default=28, help="side of the single blocks' output in pixels (default: 28)")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="float32, or autocast's dtype (default: float32)")
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:N; the figures do not depend on it (default: cpu)")
    add("--backend", default="reference", help="for fused_resnet's ops, or auto (default: reference)")
    add("--shapes", action="store_true", help="count from shapes alone, computing nothing: any batch, in seconds")
    add("--seed", type=int, default=0, help="seed of weights and images (default: 0)")
    add("--json", help="write everything that was counted here")
    add("--check", action="store_true", help="exit with 1 where a goal of the project is missed")


def checked_device(options: argparse.Namespace) -> torch.device:
    """The device asked for; raises ValueError where an option cannot be used."""
    smallest = {"--batch": options.batch - 1, "--size": options.size - 32, "--extent": options.extent - 2}
    for name, margin in {**smallest, "--planes": options.planes - MIN_PLANES}.items():
        if margin < 0:
            value = getattr(options, name[2:])
            raise ValueError(f"{name} {value}: expected at least {value - margin}")
    if options.planes % 2:
        raise ValueError(f"--planes {options.planes}: expected an even number")
    return environment.resolve_device(options.device)
