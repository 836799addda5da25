"""A network as the kernels that would run it, traced with torch.fx and given shapes on the meta device.

Three ways to cut the same graph into kernels, from none fused to whole residual blocks:
    eager         every module call and every add is a kernel of its own;
    conv-fused    batch norm, skip-add, ReLU and the stem's max pooling ride in the epilogue of their convolution;
    block-fused   besides, a residual block is one kernel that reads its input once and writes its output once.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fused_resnet.blocks import BasicBlock, Bottleneck

KINDS: dict[object, str] = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "bn",
    nn.ReLU: "relu",
    nn.MaxPool2d: "pool",
    nn.AdaptiveAvgPool2d: "average",
    nn.Linear: "linear",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    torch.flatten: "view",
}
EPILOGUE = ("bn", "add", "relu", "pool")
FUSIONS = ("eager", "conv-fused", "block-fused")


@dataclass(frozen=True)
class Step:
    """One operation: the names it reads, the shapes that go in and out, and the residual block it belongs to."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    in_shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    module: nn.Module | None
    block: str | None

    @property
    def weights(self) -> int:
        """Elements of the filter bank or matrix; per-channel vectors are not counted."""
        return self.module.weight.numel() if self.kind in ("conv", "linear") else 0

    @property
    def flops(self) -> int:
        """Floating-point operations of convolutions and matrix products, a multiply-add counted as two."""
        if self.kind not in ("conv", "linear"):
            return 0
        return 2 * self.weights * (_elements(self.out_shape) // self.out_shape[1])

    def read(self, index: int) -> int:
        """Elements of input `index` that must be read: a strided 1x1 convolution touches only the pixels it samples."""
        n, c, *pixels = self.in_shapes[index]
        if self.kind == "conv" and self.module.kernel_size == (1, 1):
            pixels = self.out_shape[2:]
        return _elements((n, c, *pixels))


@dataclass(frozen=True)
class Kernel:
    """Steps that run as one kernel, with its floating-point operations and the elements it must move."""

    steps: tuple[Step, ...]
    flops: int
    activations: int
    weights: int

    def bytes(self, itemsize: int) -> int:
        """Bytes read plus written, every tensor once."""
        return itemsize * (self.activations + self.weights)


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def steps(model: nn.Module, batch: int, size: int) -> list[Step]:
    """Every operation of `model`, on the meta device, for a (batch, 3, size, size) input, in order; no views."""
    traced = fx.symbolic_trace(model.eval())
    ShapeProp(traced).propagate(torch.empty(batch, 3, size, size, device="meta"))
    alias: dict[str, fx.Node] = {}
    found = []
    for node in traced.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        kind = KINDS.get(type(module) if module is not None else node.target)
        if kind is None:
            known = ", ".join(sorted(set(KINDS.values())))
            raise ValueError(
                f"{node.name}: {module or node.target} is an operation of unknown traffic; expected one of {known}"
            )
        inputs = [alias.get(argument.name, argument) for argument in node.args if isinstance(argument, fx.Node)]
        if kind == "view":
            alias[node.name] = inputs[0]
            continue
        stack = node.meta.get("nn_module_stack", {})
        block = next((name for name, kind_ in stack.values() if kind_ in (BasicBlock, Bottleneck)), None)
        found.append(
            Step(
                node.name,
                kind,
                tuple(i.name for i in inputs),
                tuple(tuple(i.meta["tensor_meta"].shape) for i in inputs),
                tuple(node.meta["tensor_meta"].shape),
                module,
                block,
            )
        )
    return found


def _conv_groups(found: list[Step]) -> dict[str, str]:
    """Step name -> the convolution, or other step, whose kernel it runs in.

    A follower joins the kernel of its first input when nobody else reads that value.
    """
    readers: dict[str, int] = {}
    for step in found:
        for name in step.inputs:
            readers[name] = readers.get(name, 0) + 1
    owner: dict[str, str] = {}
    convolutions = {step.name for step in found if step.kind == "conv"}
    for step in found:
        before = step.inputs[0]
        joins = step.kind in EPILOGUE and owner.get(before) in convolutions and readers[before] == 1
        owner[step.name] = owner[before] if joins else step.name
    return owner


def _group_of(found: list[Step], fusion: str) -> Callable[[Step], str]:
    if fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {fusion!r}; expected one of {', '.join(FUSIONS)}")
    if fusion == "eager":
        return lambda step: step.name
    owner = _conv_groups(found)
    if fusion == "conv-fused":
        return lambda step: owner[step.name]
    return lambda step: step.block or owner[step.name]


def kernels(found: list[Step], fusion: str) -> list[Kernel]:
    """The graph cut into kernels; each reads a tensor from outside once and writes a tensor used outside once."""
    group = _group_of(found, fusion)
    members: dict[str, list[Step]] = {}
    for step in found:
        members.setdefault(group(step), []).append(step)
    home = {step.name: group(step) for step in found}
    used_outside = {name for step in found for name in step.inputs if home.get(name) != home[step.name]}
    used_outside.add(found[-1].name)
    made = []
    for name, inside in members.items():
        reads: dict[str, int] = {}
        for step in inside:
            for index, source in enumerate(step.inputs):
                if home.get(source) != name:
                    reads[source] = max(reads.get(source, 0), step.read(index))
        written = sum(_elements(step.out_shape) for step in inside if step.name in used_outside)
        made.append(
            Kernel(
                tuple(inside),
                sum(s.flops for s in inside),
                sum(reads.values()) + written,
                sum(s.weights for s in inside),
            )
        )
    return made
