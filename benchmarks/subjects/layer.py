"""One distinct convolution with what is fused behind it, and every way of running it on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from fused_resnet import ops, use_backend
from fused_resnet.backends import BACKENDS, load, unavailable_reason
from fused_resnet.frozen import FrozenConv

from .graph import Kernel

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Layer:
    """A convolution, its input (N, C, H, W) and what follows: batch norm always, then an add, a ReLU, a max pooling."""

    input: tuple[int, ...]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    output: tuple[int, ...]
    residual: bool
    relu: bool
    pool: bool
    cost: Kernel = field(compare=False, repr=False)

    @classmethod
    def of(cls, kernel: Kernel) -> Layer:
        """The layer that a conv-fused kernel of the graph stands for."""
        first, kinds = kernel.steps[0], [step.kind for step in kernel.steps]
        conv = first.module
        geometry = (conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        tail = ("add" in kinds, "relu" in kinds, "pool" in kinds)
        return cls(first.in_shapes[0], *geometry, first.out_shape, *tail, kernel)

    @property
    def flops(self) -> int:
        """Floating-point operations of the convolution, a multiply-add counted as two."""
        return self.cost.flops

    def bytes(self, itemsize: int) -> int:
        """The fewest bytes that the fused layer moves."""
        return self.cost.bytes(itemsize)

    def __str__(self) -> str:
        _, c, h, w = self.input
        tail = "".join(f" +{name}" for name in ("residual", "relu", "pool") if getattr(self, name))
        groups = f" g{self.groups}" if self.groups > 1 else ""
        dilation = f" d{self.dilation[0]}" if self.dilation != (1, 1) else ""
        size = f"{self.kernel[0]}x{self.kernel[1]}"
        return f"{c}x{h}x{w} -> {self.filters} {size} s{self.stride[0]}{dilation}{groups}{tail}"

    def tensors(self, device: torch.device, dtype: torch.dtype) -> Tensors:
        """Random data such as a trained network has: an activated input, batch norm statistics away from 0 and 1."""
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        # The frozen row holds modules, which are not made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            geometry = (self.kernel, self.stride, self.padding, self.dilation, self.groups)
            conv = nn.Conv2d(self.input[1], self.filters, *geometry, bias=False)
            conv.weight.copy_(normal(*conv.weight.shape) * (2 / conv.weight[0].numel()) ** 0.5)
            norm = nn.BatchNorm2d(self.filters).eval()
            for vector in (norm.weight, norm.running_var):
                vector.copy_(torch.rand(self.filters, generator=draw) + 0.5)
            for vector in (norm.bias, norm.running_mean):
                vector.copy_(normal(self.filters) * 0.2)
            x = normal(*self.input).relu().to(device, dtype)
            residual = normal(*self.output).relu().to(device, dtype) if self.residual else None
            return Tensors(x, conv.to(device, dtype), norm.to(device), residual)

    @staticmethod
    def left_out(device: torch.device, dtype: torch.dtype) -> list[str]:
        """The backends that have no column, and why."""
        found = []
        for name in BACKENDS:
            reason = backend_reason(name, device, dtype)
            if reason is not None:
                found.append(f"{name}: {reason}")
        return found


@dataclass
class Tensors:
    """What every row of a layer computes with; `x` and `residual` in the default layout."""

    x: Tensor
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    residual: Tensor | None


def backend_reason(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend is not measured on this device in this dtype; None when it is."""
    if name == "triton" and device.type == "cpu":
        return "on a CPU its kernels run in Triton's interpreter, whose time says nothing about them"
    reason = unavailable_reason(name)
    if reason is not None:
        return reason
    x = torch.empty(1, 8, 8, 8, device=device, dtype=dtype)
    return load(name).unsupported_reason("conv_scale_shift_act", x, weight=torch.empty_like(x))


def _nhwc(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous(memory_format=torch.channels_last)


def eager_calls(layer: Layer, data: Tensors) -> dict[str, Call]:
    """PyTorch's own operations one after the other, in both layouts."""
    conv, norm = data.conv, data.norm

    def make(x: Tensor, weight: Tensor, residual: Tensor | None) -> Call:
        def call() -> Tensor:
            y = functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            y = functional.batch_norm(
                y, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
            if residual is not None:
                y += residual
            if layer.relu:
                y = functional.relu_(y)
            return functional.max_pool2d(y, 3, 2, 1) if layer.pool else y

        return call

    return {
        "eager": make(data.x, conv.weight, data.residual),
        "eager channels_last": make(_nhwc(data.x), _nhwc(conv.weight), _nhwc(data.residual)),
    }


def our_calls(layer: Layer, data: Tensors) -> dict[str, Call]:
    """The fused op, by backend, and one frozen convolution, all in channels_last; see `choose_backend`."""
    conv, norm = data.conv, data.norm
    x, weight, residual = _nhwc(data.x), _nhwc(conv.weight), _nhwc(data.residual)
    vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    act = "relu" if layer.relu else "identity"

    def fused() -> Tensor:
        if layer.pool:
            return ops.conv_bn_relu_maxpool(x, weight, *vectors, conv.stride, conv.padding)
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return ops.conv_scale_shift_act(x, weight, *vectors, residual, *geometry, 1, act)

    calls = {name: fused for name in BACKENDS if backend_reason(name, x.device, x.dtype) is None}
    if x.device.type == "cuda":
        calls["auto"] = fused
    with torch.inference_mode(False):
        folded = FrozenConv(conv, norm)

    def frozen() -> Tensor:
        if folded.packs(x):
            y = folded.packed(x, act, True, residual)  # the data are finite and their sums small: no NaN can arise
        else:
            y = folded(x, act, residual)
        return functional.max_pool2d(y, 3, 2, 1) if layer.pool else y

    return {**calls, "frozen": frozen}


def choose_backend(label: str) -> None:
    """Make the op run where the row called `label` says; outside the timing, as a user does it once."""
    use_backend(label if label in BACKENDS else "auto")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative RMS difference."""
    difference = (found.float() - expected).square().mean().sqrt()
    return (difference / expected.square().mean().sqrt().clamp_min(1e-30)).item()
