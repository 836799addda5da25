"""From tensors to a call of `fused_resnet._C`: layouts made dense NHWC, outputs allocated, addresses and the stream."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import BackendError
from ..promises import weights_are_constant
from .availability import extension

# as `enum class ElementType` of csrc/device/wgmma_types.cuh
ELEMENT_TYPES = {torch.bfloat16: 0, torch.float16: 1}


def dense_nhwc(tensor: Tensor) -> Tensor:
    """`tensor` (N, C, H, W) with its elements dense in the order NHWC: itself, or a copy."""
    return tensor.contiguous(memory_format=torch.channels_last)


def dense_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else dense_nhwc(tensor)


def vector(tensor: Tensor | None) -> Tensor | None:
    """`tensor` as the kernels read vectors: dense float32."""
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def bn_backward_operands(
    g: Tensor, z: Tensor | None, a: Tensor, b: Tensor | None, c: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The operands of the prologue `a * g + b * z + c`; z is left out where its slope is."""
    return dense_nhwc(g), None if b is None else dense_or_none(z), vector(a), vector(b), vector(c)


def map_like(like: Tensor, size: tuple[int, int, int, int], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised map of `size` (N, C, H, W), dense NHWC."""
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def floats_like(like: Tensor, *size: int) -> Tensor:
    """Uninitialised float32 numbers of `size`."""
    return torch.empty(size, dtype=torch.float32, device=like.device)


def weights_ready(*weights: Tensor | None) -> bool:
    """Whether a kernel may load the weights while the one before it still runs, which must not be making them dense."""
    return weights_are_constant() and all(w is None or dense_nhwc(w) is w for w in weights)


def nhwc(tensor: Tensor) -> tuple[int, int, int, int]:
    """The extents of `tensor` (N, C, H, W) in the order in which they lie."""
    n, c, h, w = tensor.shape
    return n, h, w, c


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def run(kernel: str, *arguments: Tensor | int | float | None) -> None:
    """Launch `kernel` of the extension on the device of its first argument, a tensor, and that device's current stream.

    Args:
        arguments: as the launcher of that name in csrc/launch/ takes them, without the stream: a tensor is passed as
            its address, None as 0, a dtype as its element type, numbers as they are.

    Raises:
        BackendError: the kernel does not take these arguments; nothing was launched.
        RuntimeError: the launch failed.
    """
    device = arguments[0].device
    with torch.cuda.device_of(arguments[0]):
        try:
            getattr(extension(), kernel)(*map(_crossing, arguments), _stream(device))
        except ValueError as error:
            raise BackendError(f"backend 'cuda' cannot run this call: {error}") from None


def ask(question: str, like: Tensor, *extents: int) -> int:
    """What the extension's function `question` says of a launch of these extents on the device of `like`."""
    with torch.cuda.device_of(like):
        return getattr(extension(), question)(*extents)


def _crossing(argument: Tensor | torch.dtype | int | float | None) -> int | float:
    """What crosses the border to the extension in the place of `argument`."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, torch.dtype):
        return ELEMENT_TYPES[argument]
    return 0 if argument is None else argument
