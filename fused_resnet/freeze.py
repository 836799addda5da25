"""An inference-only copy of a model, with batch norm folded into its filters and those packed for their backend."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import ops
from .blocks import BasicBlock, Bottleneck, OptionAShortcut
from .blocks.eligibility import hook_reason
from .blocks.stem import stem_unfused_reason
from .frozen import FrozenBlock, FrozenConv, FrozenStem, SafeRange
from .frozen.graphs import Graphs
from .ops import checks
from .ops.asked import one_backend
from .shapes import ConvShape

_Block = BasicBlock | Bottleneck

# ResNet-50 at 224 x 224 on two cores: eight images as two parts of four, 13 MB a map, took 5 % less time than whole.
_MAP_BYTES = 2**24


def freeze(model: nn.Module, graph: bool = False) -> Frozen:
    """An inference-only copy of `model` that runs faster than the live model and shares nothing with it.

    What it snapshots, at the time of the call: every convolution's weight and its batch norm's weight, bias, running
    statistics and eps, folded together in float64 and rounded once to the weight's dtype (the bias stays in float32 or
    wider); the option-A shortcuts; and a deep copy of whatever else the model holds (the classifier, say).  Filters are
    packed for oneDNN at the first call of a given input size on a CPU, and lie in channels_last otherwise; feature maps
    are channels_last inside.

    Later changes to `model` do not reach the copy.  Those that torch counts (an optimizer's step, a load_state_dict, a
    training-mode forward: anything that raises a tensor's version) are noticed, and the next call raises; those that it
    does not count go unnoticed: writes through `.data`, `load_state_dict(assign=True)`, replaced modules or parameters,
    a model that was created in inference mode or deleted since, and every change after the copy was itself copied,
    pickled or compiled.

    Args:
        model: a `fused_resnet` ResNet or CIFAR ResNet in eval mode, or one of its blocks.
        graph: on a GPU, capture a CUDA graph at the first call of each input shape and replay it at the next ones: what
            batches of few images need, whose kernels take less time than their launches.  The model must be on a CUDA
            device when it is called; its eight latest shapes are kept, each with feature maps of its own; hooks inside
            run when a graph is captured and not when it is replayed; one stream at a time.

    Returns:
        A module with the model's inputs and outputs.  Its filters are buffers; it refuses training mode and inputs that
        require a gradient.  torch's FLOP counter does not see its packed convolutions.

    Raises:
        TypeError: the model is none of those.
        ValueError: a part of it cannot be folded: it is in training mode, hooked, holds a foreign norm or lies on the
            meta device; the message names the part.
    """
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("cannot freeze a model on the meta device: it has no numbers to fold; load them first")
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(model, _Block):
            body = _frozen_block("block", model)
        elif hasattr(model, "layer1") and isinstance(getattr(model, "conv1", None), nn.Module):
            body = _frozen_network(model)
        else:
            raise TypeError(
                f"freeze() takes a fused_resnet ResNet or a residual block, got {type(model).__module__}."
                f"{type(model).__qualname__}"
            )
    return Frozen(body, model, graph)


def _refuse(name: str, reason: str | None) -> None:
    if reason is not None:
        raise ValueError(
            f"cannot freeze {name}: {reason}; call model.eval(), and remove hooks and foreign modules first"
        )


def _probe(conv: nn.Module) -> Tensor:
    """An empty image of the convolution's kind, to ask the live path's own rules with."""
    weight = getattr(conv, "weight", None)
    dtype, device = (torch.float32, "cpu") if weight is None else (weight.dtype, weight.device)
    return torch.empty((0, 1, 1, 1), dtype=dtype, device=device)


def _frozen_block(name: str, block: _Block) -> FrozenBlock:
    _refuse(name, block.unfused_reason(_probe(block.conv1)))
    convs = [FrozenConv(conv, norm) for conv, norm in block.chain()]
    shortcut = block.downsample
    if isinstance(shortcut, nn.Sequential):
        return FrozenBlock(convs, FrozenConv(shortcut[0], shortcut[1]))
    return FrozenBlock(convs, None, shortcut.stride if isinstance(shortcut, OptionAShortcut) else 1)


def _frozen_stage(name: str, stage: nn.Module) -> list[FrozenBlock]:
    _refuse(name, hook_reason(stage))
    blocks = []
    for child, block in stage.named_children():
        if not isinstance(block, _Block):
            raise ValueError(f"cannot freeze {name}.{child}: it is a {type(block).__name__}, not a residual block")
        _refuse(f"{name}.{child}", hook_reason(block))
        blocks.append(_frozen_block(f"{name}.{child}", block))
    return blocks


def _frozen_network(model: nn.Module) -> FrozenNetwork:
    # The pooling is copied whatever it is, so only the other three can stand in the way.
    _refuse("the stem", stem_unfused_reason(model.conv1, model.bn1, model.relu, None, _probe(model.conv1)))
    pool = getattr(model, "maxpool", None)
    stages = [name for name, _ in model.named_children() if name.startswith("layer")]
    blocks = [block for name in stages for block in _frozen_stage(name, getattr(model, name))]
    head = nn.ModuleDict({"avgpool": _copied(model.avgpool), "fc": _copied(model.fc)})
    return FrozenNetwork(FrozenStem(FrozenConv(model.conv1, model.bn1), _copied(pool)), blocks, head)


def _copied(module: nn.Module | None) -> nn.Module | None:
    """A deep copy of `module` whose parameters no longer ask for gradients."""
    return None if module is None else copy.deepcopy(module).eval().requires_grad_(False)


class FrozenNetwork(nn.Module):
    """Stem, blocks and head of a frozen ResNet."""

    def __init__(self, stem: FrozenStem, blocks: list[FrozenBlock], head: nn.ModuleDict) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, x: Tensor, known: SafeRange | None) -> Tensor:
        """In small batches when packed: their maps stay in cache, and malloc does not hand them back in between."""
        if known is None:
            return self._features(x, None)
        small = [self._features(part, SafeRange()) for part in x.split(self._images_at_once(x))]
        return small[0] if len(small) == 1 else torch.cat(small)

    def _images_at_once(self, x: Tensor) -> int:
        """How many images' largest maps, the stem's, fit into `_MAP_BYTES`; an even share of the batch."""
        conv = self.stem.conv
        shape = ConvShape.of(x, conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups)
        fitting = max(1, _MAP_BYTES // (x.element_size() * shape.p * shape.q * shape.k))
        parts = -(-shape.n // fitting)
        return -(-shape.n // parts)

    def _features(self, x: Tensor, known: SafeRange | None) -> Tensor:
        x, before = self.stem(x, known), self.stem
        for block in self.blocks:
            # A hook may have kept the map between the two.
            hooked = hook_reason(before) or hook_reason(block)
            x, before = block(x, known, overwrite=hooked is None), block
        pool = self.head["avgpool"]
        plain = type(pool) is nn.AdaptiveAvgPool2d and pool.output_size in (1, (1, 1))
        x = ops.global_avg_pool(x) if plain else pool(x)
        return self.head["fc"](torch.flatten(x, 1))


class Frozen(nn.Module):
    """What `freeze` returns; see there."""

    def __init__(self, body: nn.Module, source: nn.Module, graph: bool = False) -> None:
        super().__init__()
        self.body = body
        self._graphs = Graphs(self._run) if graph else None
        self._source = [(weakref.ref(tensor), tensor._version) for tensor in _versioned(source)]
        self.train(False)

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    @one_backend
    def forward(self, x: Tensor) -> Tensor:
        """What the model that it was frozen from makes of x, of the same shapes and dtypes.

        Raises:
            ArgumentError: x is no feature map of four dimensions.
            RuntimeError: that model has changed since; or gradients are enabled and x requires one.
        """
        if not torch.compiler.is_compiling():
            self._check_source()
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "a frozen model has no backward, and the input requires a gradient; differentiate the live model, or"
                " call under torch.no_grad()"
            )
        with torch.no_grad():
            if x.dim() != 4:
                checks.feature_map("a frozen model", "the input", x)
            x = x.contiguous(memory_format=torch.channels_last)
            replays = self._graphs is not None and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
            return self._graphs(x) if replays else self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        return self.body(x, SafeRange() if self._first_conv().packs(x) else None)

    def _first_conv(self) -> FrozenConv:
        return next(module for module in self.body.modules() if isinstance(module, FrozenConv))

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode; raises RuntimeError when asked for training mode."""
        if mode:
            raise RuntimeError("a frozen model cannot be trained: train the live model and freeze it again")
        return super().train(False)

    def _check_source(self) -> None:
        for reference, version in self._source:
            tensor = reference()
            if tensor is not None and tensor._version != version:
                raise RuntimeError(
                    "the model that this one was frozen from has changed since; call fused_resnet.freeze(model) again"
                )

    def _apply(self, fn, recurse: bool = True) -> Frozen:
        if self._graphs is not None:
            self._graphs.forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        # A copy of the snapshot stands alone: weak references neither copy nor pickle, and graphs are of this memory.
        return {**self.__dict__, "_source": [], "_graphs": self._graphs is not None}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._graphs = Graphs(self._run) if self._graphs else None


def _versioned(source: nn.Module) -> list[Tensor]:
    # The running statistics' versions stand still in training; the number of batches beside them counts.
    tensors = (*source.parameters(), *source.buffers())
    return [tensor for tensor in tensors if not tensor.is_inference()]
