"""What has to be beaten: the ceilings, cuDNN for every convolution, and torchvision's models by themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fused_resnet.shapes import ConvShape

from ..subjects.convolutions import convolutions
from . import cudnn, inference, training
from .rows import Row, Settings
from .timing import kernel_times

PASSES = ("fprop", "dgrad", "wgrad")


def rows(settings: Settings, alone: bool) -> list[Row]:
    """The rows; with `alone`, also those that the parts that measure ours measure in their own comparisons."""
    found = [
        Row("baselines", "ceilings/copy", lambda _: copy_rate(settings), 5),
        Row("baselines", "ceilings/matmul_bf16", lambda _: matmul_rate(settings), 5),
        *cudnn.rows(settings),
    ]
    if not alone:
        return found
    shapes = dict.fromkeys(shape for model in settings.models for shape in distinct_shapes(model, settings))
    for shape in shapes:
        found.append(Row("baselines", f"cudnn/{shape.key()}", lambda _, s=shape: cudnn_passes(s, settings), 4))
    return [*found, *inference.baseline_rows(settings), *training.baseline_rows(settings)]


def distinct_shapes(model: str, settings: Settings) -> list[ConvShape]:
    """The convolutions of a model at the training batch, each once, in the order they run."""
    return list(dict.fromkeys(conv.shape for conv in convolutions(model, settings.train_batch, settings.size)))


def copy_rate(settings: Settings) -> dict[str, object]:
    """TB/s of a large copy on the device, read plus written; random bytes, since zeros may run faster."""
    device = torch.device(settings.device)
    source = torch.empty(settings.copy_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    found = kernel_times({"copy": lambda: target.copy_(source)}, device, settings.seconds / 2, settings.rounds)["copy"]
    return found | {"bytes": 2 * source.numel(), "tbs": rate(2 * source.numel(), found)}


def matmul_rate(settings: Settings) -> dict[str, object]:
    """TFLOP/s of a large bfloat16 matrix product on random data."""
    device, extent = torch.device(settings.device), settings.matrix
    a, b = (torch.randn(extent, extent, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    calls = {"matmul": lambda: torch.mm(a, b, out=product)}
    found = kernel_times(calls, device, settings.seconds / 2, settings.rounds)["matmul"]
    return found | {"flops": 2 * extent**3, "tflops": rate(2 * extent**3, found)}


def rate(work: int, found: dict[str, object]) -> float | None:
    """`work` over the median, in units of 10^12 a second; raises where nothing was measured."""
    if "error" in found:
        raise RuntimeError(found["error"])
    return work / found["median_ms"] / 1e9


def operands(shape: ConvShape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random x (N, C, H, W), weight (K, C/groups, R, S) and gradient g (N, K, P, Q), channels_last."""
    sizes = (
        (shape.n, shape.c, shape.h, shape.w),
        (shape.k, shape.c // shape.groups, shape.r, shape.s),
        (shape.n, shape.k, shape.p, shape.q),
    )
    draw = [torch.randn(size, device=device, dtype=dtype) for size in sizes]
    x, weight, g = (tensor.contiguous(memory_format=torch.channels_last) for tensor in draw)
    return x, weight * shape.gemm_k**-0.5, g


def cudnn_calls(shape: ConvShape, x: Tensor, weight: Tensor, g: Tensor) -> dict[str, Callable[[], object]]:
    """torch's convolution and its two gradients by themselves: cuDNN's kernels on a GPU."""
    geometry = (list(shape.stride), list(shape.padding), list(shape.dilation))

    def backward(*mask: bool) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            g, x, weight, None, *geometry, False, [0, 0], shape.groups, [*mask, False]
        )

    calls = {
        "fprop": lambda: torch.nn.functional.conv2d(x, weight, None, *geometry, shape.groups),
        "dgrad": backward(True, False),
        "wgrad": backward(False, True),
    }
    return calls if shape.c > 3 else {name: calls[name] for name in ("fprop", "wgrad")}  # images need no gradient


def cudnn_passes(shape: ConvShape, settings: Settings) -> dict[str, object]:
    """Microseconds of cuDNN's forward, input-gradient and weight-gradient kernels of one convolution, bfloat16."""
    device = torch.device(settings.device)
    calls = cudnn_calls(shape, *operands(shape, device, torch.bfloat16))
    with torch.no_grad():
        passes = kernel_times(calls, device, settings.seconds / 6, settings.rounds)
    return {"shape": shape.key(), "flops": shape.flops, "bytes": shape.bytes(2), "passes": passes}
