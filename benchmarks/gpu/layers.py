"""Every distinct convolution with what is fused to it, beside cuDNN's bare kernels: forward and both gradients.

Ours does more than cuDNN's kernel that it stands beside: batch norm, residual and ReLU in inference, the norm's
backward as a prologue in training.  `eager` is cuDNN's convolution with those as separate passes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

import fused_resnet
from fused_resnet import BackendError
from fused_resnet.backends import BACKENDS
from fused_resnet.ops import training
from fused_resnet.shapes import ConvShape

from ..layers import LIMITS, layers_of
from ..meters.rows import cudnn_at_its_best
from ..subjects.layer import Layer, eager_calls, our_calls, relative_error
from .baselines import cudnn_calls, operands
from .rows import Row, Settings
from .timing import kernel_times

Call = Callable[[], object]
BF16 = torch.bfloat16
CUDNN = "cudnn"
EAGER = "eager channels_last"
_VECTORS = {"in_scale": "c", "in_shift": "c", "a": "k", "b": "k", "c": "k"}


def rows(settings: Settings) -> list[Row]:
    """One row a layer, in the order that the first model runs them."""
    return [
        Row(
            "layers",
            name_of(layer),
            lambda _, one=layer, counts=counts: compared(one, counts, settings),
            8,
            ("machine", "sources"),
            later=0 if counts[settings.models[0]] else 2,
        )
        for layer, counts in layers_of(settings.models, settings.train_batch, settings.size).items()
    ]


def shape_of(layer: Layer) -> ConvShape:
    """The layer's convolution."""
    return ConvShape(
        *layer.input, layer.filters, *layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def name_of(layer: Layer) -> str:
    """The shape's key and what follows the convolution."""
    tail = "".join(f"+{name}" for name in ("residual", "relu", "pool") if getattr(layer, name))
    return shape_of(layer).key() + tail


def compared(layer: Layer, counts: dict[str, int], settings: Settings) -> dict[str, object]:
    """Times of the passes by label; how far ours is from eager; which backends refuse which pass, and why."""
    device, shape = torch.device(settings.device), shape_of(layer)
    backends = settings.available(settings.backends)
    passes, refused = {}, {}

    def measure(name: str, theirs: dict[str, Call], ours: dict[str, Call]) -> None:
        taken = {label: call for label, call in ours.items() if not _refuses(call, f"{name}, {label}", refused)}
        passes[name] = kernel_times(theirs | taken, device, settings.seconds / 6, settings.rounds)

    with cudnn_at_its_best(), torch.inference_mode():
        theirs, ours = inference_calls(layer, device, backends)
        measure("inference", theirs, ours)
        expected = theirs[EAGER]().float()
        ran = [label for label, entry in passes["inference"].items() if label in ours and "error" not in entry]
        errors = {label: relative_error(ours[label](), expected) for label in ran}
    # The operands are made outside of inference mode: the training ops are autograd's.
    with cudnn_at_its_best(), torch.no_grad():
        tensors = operands(shape, device, BF16)
        z = torch.randn_like(tensors[2])
        for name, cudnn in cudnn_calls(shape, *tensors).items():
            measure(name, {CUDNN: cudnn}, training_calls(name, shape, (*tensors, z), backends))
    found = {"layer": str(layer), "shape": shape.key(), "count": counts, "flops": layer.flops}
    found |= {"bytes": layer.bytes(2), "passes": passes, "refused": refused}
    return found | {"errors": errors, "limit": LIMITS[BF16]}


def _refuses(call: Call, name: str, refused: dict[str, str]) -> bool:
    """Whether the backend says that it does not take this call, which is noted; another failure is none of that."""
    try:
        call()
    except BackendError as error:
        refused[name] = str(error)
        return True
    except Exception:
        return False  # the timing meets it again and says so
    return False


def under(backend: str, call: Call) -> Call:
    """`call` with the ops asked to run on `backend`."""

    def run() -> object:
        with fused_resnet.use_backend(backend):
            return call()

    return run


def inference_calls(layer: Layer, device: torch.device, backends: list[str]) -> tuple[dict[str, Call], dict[str, Call]]:
    """cuDNN's bare convolution and the eager chain; ours by backend."""
    data = layer.tensors(device, BF16)
    conv = data.conv
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (data.x, conv.weight))
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    theirs = {
        CUDNN: lambda: torch.nn.functional.conv2d(x, weight, None, *geometry),
        EAGER: eager_calls(layer, data)[EAGER],
    }
    calls = our_calls(layer, data)
    fused = next(call for label, call in calls.items() if label != "frozen")
    calls = dict.fromkeys(backends, fused) | calls  # one call for all backends: the one in use when it is made
    return theirs, {label: under(label if label in BACKENDS else "auto", call) for label, call in calls.items()}


def training_calls(
    name: str, shape: ConvShape, tensors: tuple[Tensor, Tensor, Tensor, Tensor], backends: list[str]
) -> dict[str, Call]:
    """Our kernel for a pass by backend, with the prologues that a block gives it."""
    op = {"fprop": "conv_stats", "dgrad": "conv_dgrad", "wgrad": "conv_wgrad"}[name]
    arguments = arguments_of(op, shape, *tensors)
    return {backend: under(backend, lambda: getattr(training, op)(**arguments)) for backend in backends}


def arguments_of(op: str, shape: ConvShape, x: Tensor, weight: Tensor, g: Tensor, z: Tensor) -> dict[str, object]:
    """What a block calls a training op with; what belongs to its neighbours (skips, masks) is left out."""
    extents = {"c": shape.c, "k": shape.k}
    known = {
        "x": x,
        "weight": weight,
        "g": g,
        "z": z,
        "stride": tuple(shape.stride),
        "padding": tuple(shape.padding),
        "dilation": tuple(shape.dilation),
        "groups": shape.groups,
        "input_size": [shape.n, shape.c, shape.h, shape.w],
        "weight_size": [shape.k, shape.c // shape.groups, shape.r, shape.s],
        "skip_stride": 1,
    }
    for name, channels in _VECTORS.items():
        known[name] = torch.rand(extents[channels], device=x.device) + 0.5
    return {name: known.get(name) for name in inspect.signature(getattr(training, op)).parameters}
