"""How a raw op is registered: schema, real implementation, fake one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from . import dispatch

NAMESPACE = "fused_resnet"
KERNEL_DEVICES = ("cpu", "cuda")
_library = torch.library.Library(NAMESPACE, "DEF")

# checks the arguments and returns the output's size and the arguments that a backend's choice depends on
Describe = Callable[..., tuple[tuple[int, ...], dict]]


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
            f"{NAMESPACE}::{name} is an inference op without a backward, and an argument requires a gradient;"
            " call it under torch.no_grad(), or call the model, whose blocks are differentiable where they must be"
        )


def register(schema: str, describe: Describe) -> Callable[..., Tensor]:
    """Register the op of `schema` and return the function that calls it.

    `describe(*arguments)` checks the arguments; the real and the fake implementation both call it first, so both raise
    the same errors.  The op returns a fresh tensor of x's dtype in the memory format of `memory_format(x, weight)`.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    has_weight = "Tensor weight" in schema
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))

    def output_format(x: Tensor, arguments: tuple) -> torch.memory_format:
        return memory_format(x, arguments[0] if has_weight else None)

    def fake(x: Tensor, *arguments) -> Tensor:
        size, _ = describe(x, *arguments)
        _refuse_gradients(name, (x, *arguments))
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=output_format(x, arguments))

    def run(x: Tensor, *arguments) -> Tensor:
        size, deciding = describe(x, *arguments)
        _refuse_gradients(name, (x, *arguments))
        layout = output_format(x, arguments)
        if size[0] == 0:
            return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
        function = dispatch.implementation(name, x, **deciding)
        if torch.is_autocast_enabled(x.device.type):
            # The caller has chosen the dtypes; autocast must not change them again inside.
            with torch.autocast(x.device.type, enabled=False):
                y = function(x, *arguments)
        else:
            y = function(x, *arguments)
        return y.contiguous(memory_format=layout)

    for device in KERNEL_DEVICES:
        _library.impl(name, run, device.upper())
    torch.library.register_fake(qualified, fake, lib=_library)
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default

    @functools.wraps(run)
    def call(x: Tensor, *arguments) -> Tensor:
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
