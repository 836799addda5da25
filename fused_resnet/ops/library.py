"""How a raw op is registered: schema, real implementation, fake one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from . import dispatch

NAMESPACE = "fused_resnet"
KERNEL_DEVICES = ("cpu", "cuda")
_library = torch.library.Library(NAMESPACE, "DEF")


class Output(NamedTuple):
    """What an op returns: one of these for each tensor of a tuple."""

    size: tuple[int, ...]
    dtype: torch.dtype


# checks the arguments and returns the outputs (for one of x's dtype, its size will do) and the arguments that a
# backend's choice depends on
Describe = Callable[..., tuple[tuple[int, ...] | list[Output], dict]]


def memory_format(x: Tensor, weight: Tensor | None = None) -> torch.memory_format:
    """channels_last when x or weight is: the rule of torch's own convolutions."""
    if _suggested(x) == torch.channels_last or (weight is not None and _suggested(weight) == torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _suggested(tensor: Tensor) -> torch.memory_format:
    # The two common answers cost a microsecond; suggest_memory_format, which knows the rest, ten.
    if tensor.is_contiguous():
        return torch.contiguous_format
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return suggest_memory_format(tensor)


def _refuse_gradients(name: str, tensors: tuple) -> None:
    # Said here and not in a registered backward: an autograd kernel in Python costs each call 30 microseconds.
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{NAMESPACE}::{name} is a raw op without a backward, and an argument requires a gradient;"
            " call it under torch.no_grad(), or call the model, whose blocks are differentiable where they must be"
        )


def _described(outputs: tuple[int, ...] | list[Output], x: Tensor) -> list[Output]:
    return outputs if isinstance(outputs, list) else [Output(outputs, x.dtype)]


def _layout(size: tuple[int, ...], of_maps: torch.memory_format) -> torch.memory_format:
    return of_maps if len(size) == 4 else torch.contiguous_format


def _without_autocast(function: Callable, x: Tensor, arguments: tuple) -> Tensor | tuple[Tensor, ...]:
    # The caller has chosen the dtypes; autocast must not change them again inside.
    if not torch.is_autocast_enabled(x.device.type):
        return function(x, *arguments)
    with torch.autocast(x.device.type, enabled=False):
        return function(x, *arguments)


def register(schema: str, describe: Describe) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """Register the op of `schema` and return the function that calls it.

    `describe(*arguments)` checks the arguments; the real and the fake implementation both call it first, so both raise
    the same errors.  The op returns fresh tensors, one or a tuple as the schema says: 4-D ones in the memory format of
    `memory_format(x, weight)` (of x alone where the second argument is no weight), the others contiguous.  For an empty
    batch they are empty, or sums over nothing: zeros.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    has_weight = schema.split(", ")[1:2] == ["Tensor weight"]
    single = schema.endswith("-> Tensor")
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def map_format(x: Tensor, arguments: tuple) -> torch.memory_format:
        return memory_format(x, arguments[0] if has_weight else None)

    def packed(tensors: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return tensors[0] if single else tuple(tensors)

    def fake(x: Tensor, *arguments) -> Tensor | tuple[Tensor, ...]:
        outputs, _ = describe(x, *arguments)
        _refuse_gradients(name, (x, *arguments))
        maps = map_format(x, arguments)
        return packed([
            torch.empty(size, dtype=dtype, device=x.device, memory_format=_layout(size, maps))
            for size, dtype in _described(outputs, x)
        ])  # fmt: skip

    def run(x: Tensor, *arguments) -> Tensor | tuple[Tensor, ...]:
        outputs, deciding = describe(x, *arguments)
        _refuse_gradients(name, (x, *arguments))
        maps = map_format(x, arguments)
        if x.dim() == 4 and x.shape[0] == 0:
            return packed([
                torch.zeros(size, dtype=dtype, device=x.device).contiguous(memory_format=_layout(size, maps))
                for size, dtype in _described(outputs, x)
            ])  # fmt: skip
        function = dispatch.implementation(name, x, **deciding)
        result = _without_autocast(function, x, arguments)
        if single:
            return result.contiguous(memory_format=_layout(result.shape, maps))
        return tuple(tensor.contiguous(memory_format=_layout(tensor.shape, maps)) for tensor in result)

    for device in KERNEL_DEVICES:
        _library.impl(name, run, device.upper())
    torch.library.register_fake(qualified, fake, lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    @functools.wraps(run)
    def call(x: Tensor, *arguments) -> Tensor | tuple[Tensor, ...]:
        # From Python to Python the dispatcher costs 20 microseconds; it is needed only where someone listens to it.
        return run(x, *arguments) if _plain_call(x) else overload(x, *arguments)

    return call


def _plain_call(x: Tensor) -> bool:
    """Whether nothing between the caller and the kernel would see the op: no compiler, mode, transform or subclass."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and x.device.type in KERNEL_DEVICES
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.jit.is_tracing()
        and not torch.autograd._profiler_enabled()
    )
