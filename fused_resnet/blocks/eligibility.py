"""When a chain of modules may run as one fused op, and the reason when it may not.

A fused op computes what its modules would compute one by one, but does not call them.  So it is taken only where nobody
could tell: no hook inside, no foreign module, no gradient or transform that the op does not know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_FROZEN_NORM = ("torchvision.ops.misc", "FrozenBatchNorm2d")
# Asked whether autocast is on, torch raises for these.  `torch.amp.is_autocast_available` knows them too, but
# torch 2.11's Dynamo cannot trace it.
NO_AUTOCAST = frozenset("meta lazy vulkan mkldnn opengl opencl ideep hip ve fpga".split())

Check = Callable[[nn.Module, Tensor], "str | None"]


def conv_reason(conv: nn.Module, x: Tensor) -> str | None:
    """Why `conv` is not a plain convolution that a fused op can stand for."""
    if type(conv) is not nn.Conv2d:
        return f"is {type(conv).__name__}, not Conv2d"
    if conv._parameters["bias"] is not None:
        return "has a bias"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"pads with {conv.padding_mode!r}, {conv.padding!r}"
    weight = conv.weight
    if type(weight) not in _PLAIN_TENSORS:
        return f"has a weight of type {type(weight).__name__}"
    if weight.device != x.device:
        return f"has its weight on {weight.device}, the input is on {x.device}"
    if weight.dtype != x.dtype and compute_dtype(x) != compute_dtype(weight):
        return f"has a weight of {weight.dtype}, the input is {x.dtype}"
    return None


def is_frozen_norm(norm: nn.Module) -> bool:
    """Whether `norm` is torchvision's FrozenBatchNorm2d: a batch norm whose parameters and statistics are buffers.

    By name, since torchvision need not be there.  Fused, it answers in the maps' dtype; on its own, autocast gives it
    maps in half precision and its float32 buffers turn them into float32.
    """
    kind = type(norm)
    return (kind.__module__, kind.__name__) == _FROZEN_NORM


def norm_reason(norm: nn.Module, x: Tensor) -> str | None:
    """Why `norm` is not a batch norm with constant statistics."""
    if is_frozen_norm(norm):
        return None
    if type(norm) not in _NORMS:
        return f"is {type(norm).__name__}, not BatchNorm2d"
    if norm.training:
        return "is in training mode"
    if norm._buffers["running_mean"] is None or norm._buffers["running_var"] is None:
        return "keeps no running statistics"
    return None


def projection_reason(conv: nn.Module, x: Tensor) -> str | None:
    """Why `conv` is not a convolution that the differentiable path can project a shortcut with."""
    reason = conv_reason(conv, x)
    if reason is None and not (is_pointwise(conv) and conv.stride[0] == conv.stride[1]):
        return f"is not a plain 1x1 convolution of one stride: {conv}"
    return reason


def batch_norm_reason(norm: nn.Module, x: Tensor) -> str | None:
    """Why `norm` is not a batch norm that the differentiable path knows."""
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) and not is_frozen_norm(norm):
        return f"is {type(norm).__name__}, not BatchNorm2d"
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = getattr(norm, name)
        if vector is None:
            continue
        if vector.device != x.device:
            return f"has its {name} on {vector.device}, the input is on {x.device}"
        if vector.dtype not in _vector_dtypes(norm, x):
            return f"has its {name} in {vector.dtype}, the input is {x.dtype}"
    return None


def _vector_dtypes(norm: nn.Module, x: Tensor) -> tuple[torch.dtype, ...]:
    """Those that torch's own batch norm takes beside a map that `x` becomes."""
    maps = compute_dtype(x)
    return (maps, torch.float32) if maps.itemsize == 2 or is_frozen_norm(norm) else (maps,)


def is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def relu_reason(relu: nn.Module, x: Tensor) -> str | None:
    return None if type(relu) is nn.ReLU else f"is {type(relu).__name__}, not ReLU"


class Path(NamedTuple):
    """What a chain's parts must be, by their role, for the ops of one kind, and whether those have a backward."""

    conv: Check
    norm: Check
    projection: Check
    relu: Check
    differentiable: bool


@functools.cache
def parts_of(path: Path, depth: int) -> tuple[tuple[str, Check], ...]:
    """The names of a stem's modules, depth 1, or of those of a block of `depth` convolutions, each with its check."""
    units = [((f"conv{i}", path.conv), (f"bn{i}", path.norm)) for i in range(1, depth + 1)]
    return (("relu", path.relu), *(part for unit in units for part in unit))


INFERENCE = Path(conv_reason, norm_reason, conv_reason, relu_reason, differentiable=False)
TRAINING = Path(conv_reason, batch_norm_reason, projection_reason, relu_reason, differentiable=True)


def hook_reason(module: nn.Module) -> str | None:
    """Why `module` itself must be called, not only what it computes."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has a hook"
    return None


def gradient_reason(x: Tensor, modules: Mapping[str, nn.Module], names: Iterable[str]) -> str | None:
    """Which parameter or input wants a gradient, if gradients are enabled at all."""
    if not torch.is_grad_enabled():
        return None
    for name in names:
        if any(p is not None and p.requires_grad for p in modules[name]._parameters.values()):
            return f"{name} has parameters that require gradients; call under torch.no_grad() or torch.inference_mode()"
    return "the input requires a gradient" if x.requires_grad else None


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that `tensor` enters a convolution with, autocast considered."""
    device = tensor.device.type
    if (
        device not in NO_AUTOCAST
        and torch.is_autocast_enabled(device)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
    ):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def input_reason(x: Tensor) -> str | None:
    """Why a fused op cannot take `x` as it comes: tracing, transforms, tensor subclasses, or torch's own complaint."""
    if isinstance(x, torch.fx.Proxy):
        return "being traced symbolically"
    if torch.jit.is_tracing():
        return "being traced by torch.jit"
    if type(x) not in _PLAIN_TENSORS:
        return f"the input is a {type(x).__name__}"
    if x.dim() != 4 or not x.is_floating_point():
        return f"the input is {x.dim()}-D {x.dtype}, not a 4-D floating-point map"
    if not torch.compiler.is_compiling():
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return "inside a torch.func transform"
        if forward_ad._current_level >= 0:
            return "inside forward-mode differentiation"
        if torch._C._len_torch_dispatch_stack() and _counting_flops():
            return "a FLOP counter is active, which knows only torch's own ops"
        if any(getattr(_module, hooks) for hooks in _GLOBAL_HOOKS):
            return "a global module hook is registered"
    return None


def _counting_flops() -> bool:
    # By name: importing torch.utils.flop_counter would import triton.
    return any("FlopCounterMode" in type(mode).__name__ for mode in _get_current_dispatch_mode_stack())


def chain_reason(
    x: Tensor,
    modules: Mapping[str, nn.Module],
    parts: Iterable[tuple[str, Check]],
    path: Path,
    prefix: str = "",
) -> str | None:
    """Why `x` cannot go through these parts as fused ops; None when it can.

    Args:
        x: the input of the first part.
        modules: the parts by name, as in `nn.Module._modules`.
        parts: each part's name, and the check of what it must be.
        path: whose checks these are; where its ops have a backward, a gradient is no reason.
        prefix: stands before the names in the answer.
    """
    reason = input_reason(x)
    if reason is None and path.differentiable and x.shape[0] == 0:
        # A rank without images still owes the others its part of a SyncBatchNorm's statistics.
        if not any(type(modules[name]) is nn.SyncBatchNorm for name, _ in parts):
            reason = "the batch is empty, and has no statistics"
    if reason is not None:
        return reason
    for name, check in parts:
        reason = check(modules[name], x) or hook_reason(modules[name])
        if reason is not None:
            return f"{prefix}{name} {reason}"
    reason = None if path.differentiable else gradient_reason(x, modules, (name for name, _ in parts))
    return None if reason is None else prefix + reason
