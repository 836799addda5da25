"""Counts the bytes that pass through operators, op by op as PyTorch dispatches them; needs no GPU and never drifts.

The unit is the op as dispatched: what a `fused_resnet::*` op does inside is its own affair, be its backend the
reference in plain PyTorch or a kernel, since one kernel is what it stands for.  The rules:

- each distinct region of storage among an op's inputs is read once, each output is written once;
- a map expanded over a stride of 0 counts as the elements it has;
- an in-place op reads and writes, `copy_`, `zero_`, `fill_` and `out=` only write;
- views, metadata and allocations cost nothing; scalars and per-channel vectors count like everything else.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# Besides everything in prim: sizes, strides and what an in-place view changes, but no element.
_METADATA = tuple(
    f"aten::{name}"
    for name in (
        *("is_same_size", "_has_compatible_shallow_copy_type", "_version", "is_pinned"),
        *("as_strided_", "detach_", "resize_", "set_", "squeeze_", "t_", "transpose_", "unsqueeze_"),
    )
)
_OVERWRITING = ("copy_", "zero_", "fill_", "normal_", "uniform_", "random_", "bernoulli_")
_BATCH_NORMS = ("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")

Region = tuple[object, ...]


@dataclass(frozen=True)
class OpTraffic:
    """Bytes of one dispatched op: all of its reads and writes, and those of feature maps among them."""

    phase: str
    name: str
    read: int
    written: int
    map_read: int
    map_written: int

    @property
    def total(self) -> int:
        return self.read + self.written

    @property
    def maps(self) -> int:
        return self.map_read + self.map_written


def region(tensor: Tensor) -> Region:
    """What tells two pieces of storage apart: the storage, and the elements addressed in it."""
    axes = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride()) if size != 1 and stride != 0)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.dtype, *axes)


def region_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements that a strided tensor addresses."""
    if tensor.numel() == 0:
        return 0
    axes = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride()) if stride != 0]
    elements, span = 1, 1
    for size, stride in axes:
        elements *= size
        span += (size - 1) * stride
    return min(elements, span) * tensor.element_size()


def is_map_of(batch: int, modules: Iterable[nn.Module]) -> Callable[[Tensor], bool]:
    """A test for feature maps: four-dimensional, led by the batch, and not of a parameter's shape."""
    parameters = {parameter.shape for module in modules for parameter in module.parameters()}
    return lambda tensor: tensor.dim() == 4 and tensor.shape[0] == batch and tensor.shape not in parameters


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)


class TrafficMode(TorchDispatchMode):
    """Records an `OpTraffic` in `ops` for every op that moves bytes while the mode is active.

    Args:
        is_map: which tensors are feature maps.
    """

    def __init__(self, is_map: Callable[[Tensor], bool] = lambda tensor: tensor.dim() == 4) -> None:
        super().__init__()
        self.is_map = is_map
        self.phase = "forward"
        self.ops: list[OpTraffic] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Before the op runs: an op may change the sizes of a tensor that it is given.
        reads, written, storages = self._inputs(func, args, kwargs)
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        fresh = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in storages]
        view = bool(outputs) and not fresh and not written
        name = func._schema.name
        if view or name in _METADATA or name.startswith("prim::") or not (outputs or written or reads):
            return result
        if not _allocates(name):
            written = written + fresh
        row = OpTraffic(self.phase, name, *self._bytes(reads, written))
        if row.total:
            self.ops.append(row)
        return result

    def _inputs(self, func, args: tuple, kwargs: dict) -> tuple[list[Tensor], list[Tensor], set[int]]:
        """The tensors that the op reads, those that it changes, and the storages of all it is given."""
        schema = func._schema
        short = schema.name.partition("::")[2]
        given = dict(zip((argument.name for argument in schema.arguments), args)) | kwargs
        reads, written, storages = [], [], set()
        for argument in schema.arguments:
            tensors = list(_tensors(given.get(argument.name)))
            storages |= {tensor.untyped_storage()._cdata for tensor in tensors}
            changed = argument.alias_info is not None and argument.alias_info.is_write
            if changed:
                written += tensors
            elif schema.name in _BATCH_NORMS and argument.name.startswith("running_") and given.get("training"):
                written += tensors  # updated in place, which their schemas keep to themselves
            if not (changed and (short in _OVERWRITING or argument.kwarg_only)) and not _ignores_values(short):
                reads += tensors
        return reads, written, storages

    def _bytes(self, reads: list[Tensor], written: list[Tensor]) -> tuple[int, int, int, int]:
        sums = []
        for tensors in (reads, written):
            distinct = {region(tensor): tensor for tensor in tensors}.values()
            sums.append([(region_bytes(tensor), self.is_map(tensor)) for tensor in distinct])
        whole = [sum(size for size, _ in entries) for entries in sums]
        maps = [sum(size for size, is_map in entries if is_map) for entries in sums]
        return whole[0], whole[1], maps[0], maps[1]


def _ignores_values(short: str) -> bool:
    """Whether an op takes its tensors for their shape only."""
    return short.endswith("_like") or short.startswith("new_")


def _allocates(name: str) -> bool:
    """Whether an op's output is memory that nobody has written yet."""
    short = name.partition("::")[2]
    return short.startswith(("empty", "new_empty")) or short == "_empty_affine_quantized"


def phase_sum(ops: Iterable[OpTraffic], phase: str, maps: bool = False) -> int:
    """Bytes of one phase: of everything, or of feature maps only."""
    return sum(op.maps if maps else op.total for op in ops if op.phase == phase)


def block_step(
    block: nn.Module, x: Tensor, grad: Tensor, is_map: Callable[[Tensor], bool], amp: torch.dtype | None = None
) -> list[OpTraffic]:
    """The ops of a forward and a backward pass of a block in the middle of a network.

    Args:
        block: in training mode.
        x: the block's input; its gradient is computed too.
        grad: the gradient of the block's output, of its shape and dtype.
        is_map: which tensors are feature maps.
        amp: autocast's dtype; None leaves autocast off.
    """
    x = x.detach().requires_grad_()
    wanted = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    with TrafficMode(is_map) as meter:
        with torch.autocast(x.device.type, amp, enabled=amp is not None):
            y = block(x)
        meter.phase = "backward"
        # Not y.backward(): storing into .grad is the optimizer's side of a step, and free where the layout agrees.
        torch.autograd.grad(y, wanted, grad)
    return meter.ops


def model_step(
    model: nn.Module, images: Tensor, labels: Tensor, is_map: Callable[[Tensor], bool], amp: torch.dtype | None = None
) -> list[OpTraffic]:
    """The ops of a forward pass, the cross entropy and the backward pass; gradients start out absent."""
    model.zero_grad(set_to_none=True)
    with TrafficMode(is_map) as meter:
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            loss = nn.functional.cross_entropy(model(images), labels)
        meter.phase = "backward"
        loss.backward()
    model.zero_grad(set_to_none=True)
    return meter.ops
