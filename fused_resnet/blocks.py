"""The basic and the bottleneck residual block, torchvision's in every respect but how they run.

They own parameters and running statistics and choose ops; they compute nothing themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import ops
from .eligibility import (
    Check,
    chain_reason,
    compute_dtype,
    conv_reason,
    hook_reason,
    input_reason,
    norm_reason,
    relu_reason,
)
from .ops.dispatch import note_path, too_small


def conv3x3(in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, dilation, dilation, groups, bias=False)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)


class OptionAShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2015 (option A): subsample in space, pad channels with zeros.

    Input (N, in_channels, H, W), output (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        if not 0 < in_channels <= out_channels:
            raise ValueError(
                f"option A can only add channels: expected 0 < in_channels <= {out_channels}, got {in_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        below = (self.out_channels - self.in_channels) // 2
        above = self.out_channels - self.in_channels - below
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, below, above])

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def conv_norm_act(
    x: Tensor, conv: nn.Conv2d, norm: nn.Module, act: str, residual: Tensor | None = None, residual_stride: int = 1
) -> Tensor:
    """`act(norm(conv(x)) + residual)` as one op, from the live parameters, in autocast's dtype where it is on."""
    dtype = compute_dtype(x)
    return ops.conv_scale_shift_act(
        x.to(dtype),
        conv.weight.to(dtype),
        norm._parameters["weight"],
        norm._parameters["bias"],
        norm._buffers["running_mean"],
        norm._buffers["running_var"],
        norm.eps,
        residual if residual is None else residual.to(dtype),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        residual_stride,
        act,
    )


def _parts(depth: int) -> tuple[tuple[str, Check], ...]:
    pairs = ((f"conv{i}", conv_reason, f"bn{i}", norm_reason) for i in range(1, depth + 1))
    return (("relu", relu_reason), *(part for c, c_check, n, n_check in pairs for part in ((c, c_check), (n, n_check))))


def _small_reason(x: Tensor) -> str | None:
    """`too_small`, where the size is known: under a tracer or torch.compile it may be another one at the next call."""
    return None if torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy) else too_small(x)


_SHORTCUT = (conv_reason, norm_reason)


class _ResidualBlock(nn.Module):
    """What both blocks share: the shortcut, the choice of path and the fused path over `chain()`."""

    expansion: int
    _depth: int  # convolutions on the residual branch
    _parts: tuple[tuple[str, Check], ...]

    def chain(self) -> list[tuple[nn.Module, nn.Module]]:
        """The residual branch's convolutions, each with its norm."""
        modules = self._modules
        return [(modules[f"conv{i}"], modules[f"bn{i}"]) for i in range(1, self._depth + 1)]

    def unfused_reason(self, x: Tensor) -> str | None:
        """Why this block would take the unfused path for `x`, module by module; None when it would run fused."""
        reason = chain_reason(x, self._modules, self._parts)
        shortcut = self.downsample
        if reason is not None or shortcut is None:
            return reason
        reason = hook_reason(shortcut)
        if reason is not None:
            return f"downsample {reason}"
        if type(shortcut) is nn.Sequential and len(shortcut) == 2:
            return chain_reason(x, shortcut._modules, tuple(zip(shortcut._modules, _SHORTCUT)), "downsample.")
        if type(shortcut) is not OptionAShortcut:
            return f"downsample is {type(shortcut).__name__}, not (conv, norm) or OptionAShortcut"
        return None

    def _fused(self, x: Tensor) -> Tensor:
        residual, residual_stride = x, 1
        if isinstance(self.downsample, nn.Sequential):
            residual = conv_norm_act(x, self.downsample[0], self.downsample[1], "identity")
        elif self.downsample is not None:
            residual_stride = self.downsample.stride
        *inner, (last_conv, last_norm) = self.chain()
        y = x
        for conv, norm in inner:
            y = conv_norm_act(y, conv, norm, "relu")
        return conv_norm_act(y, last_conv, last_norm, "relu", residual, residual_stride)

    def _fuses(self, x: Tensor) -> bool:
        reason = _small_reason(x) or self.unfused_reason(x)
        note_path(self, reason)
        return reason is None


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions and a skip: the block of ResNet-18 and ResNet-34 (He et al. 2015, figure 5 left).

    Constructor arguments, children, parameters and errors are those of `torchvision.models.resnet.BasicBlock`;
    `downsample` may also be an `OptionAShortcut`.  Input (N, inplanes, H, W), output (N, planes, P, Q).
    """

    expansion: int = 1
    _depth = 2
    _parts = _parts(2)

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if norm_layer is None:
            norm_layer = nn.BatchNorm2d
        if groups != 1 or base_width != 64:
            raise ValueError("BasicBlock only supports groups=1 and base_width=64")
        if dilation > 1:
            raise NotImplementedError("Dilation > 1 not supported in BasicBlock")
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self._fuses(x):
                return self._fused(x)
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Bottleneck(_ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions and a skip: the block of ResNet-50 and deeper (He et al. 2015, figure 5 right).

    The stride is on the 3x3 ("v1.5"), as in torchvision, whose `torchvision.models.resnet.Bottleneck` this is in
    constructor arguments, children, parameters and errors.  Input (N, inplanes, H, W), output (N, 4 planes, P, Q).
    """

    expansion: int = 4
    _depth = 3
    _parts = _parts(3)

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if norm_layer is None:
            norm_layer = nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = conv1x1(inplanes, width)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self._fuses(x):
                return self._fused(x)
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


_STEM_PARTS = (("relu", relu_reason), ("conv1", conv_reason), ("bn1", norm_reason))


def stem_unfused_reason(
    conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module | None, x: Tensor
) -> str | None:
    """Why a stem would be called module by module for `x`; None when it would run as one op."""
    reason = chain_reason(x, {"conv1": conv, "bn1": norm, "relu": relu}, _STEM_PARTS)
    if reason is not None or pool is None:
        return reason
    if type(pool) is not nn.MaxPool2d:
        return f"maxpool is {type(pool).__name__}, not MaxPool2d"
    plain = all(isinstance(v, int) for v in (pool.kernel_size, pool.stride, pool.padding))
    if not plain or pool.dilation != 1 or pool.ceil_mode or pool.return_indices:
        return "maxpool is not a plain square window"
    if conv.groups != 1 or conv.dilation != (1, 1):
        return "conv1 is grouped or dilated"
    return None if hook_reason(pool) is None else "maxpool has a hook"


def stem_forward(conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module | None, x: Tensor) -> Tensor:
    """`pool(relu(norm(conv(x))))`, as one op where it may be; `pool` None stands for no pooling.

    The fused stem answers in channels_last, which every fused block after it keeps.
    """
    reason = _small_reason(x) or stem_unfused_reason(conv, norm, relu, pool, x)
    note_path(conv, reason)
    if reason is not None:
        x = relu(norm(conv(x)))
        return x if pool is None else pool(x)
    x = x.contiguous(memory_format=torch.channels_last)
    if pool is None:
        return conv_norm_act(x, conv, norm, "relu")
    dtype = compute_dtype(x)
    return ops.conv_bn_relu_maxpool(
        x.to(dtype),
        conv.weight.to(dtype),
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        conv.stride,
        conv.padding,
        pool.kernel_size,
        pool.stride,
        pool.padding,
    )


def head_unfused_reason(pool: nn.Module, x: Tensor) -> str | None:
    """Why the global average pool would be called as a module for `x`; None when it would run as an op."""
    reason = input_reason(x)
    if reason is not None:
        return reason
    if type(pool) is not nn.AdaptiveAvgPool2d or pool.output_size not in (1, (1, 1)):
        return f"avgpool is {pool}, not AdaptiveAvgPool2d(1)"
    if torch.is_grad_enabled() and x.requires_grad:
        return "the input requires a gradient"
    return None if hook_reason(pool) is None else "avgpool has a hook"


def head_pool(pool: nn.Module, x: Tensor) -> Tensor:
    """`pool(x)`, as one op where it may be."""
    reason = head_unfused_reason(pool, x)
    note_path(pool, reason)
    return pool(x) if reason is not None else ops.global_avg_pool(x)
