"""The basic and the bottleneck residual block, torchvision's in every respect but how they run.

They own parameters and running statistics and choose ops; they compute nothing themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.asked import one_backend
from ..ops.dispatch import note_path, too_small, trains_by_name
from . import trainable
from .eligibility import INFERENCE, TRAINING, Path, chain_reason, compute_dtype, hook_reason, parts_of


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
        """x at every `stride`-th row and column, between the zeros of the channels that are new."""
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
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        residual if residual is None else residual.to(dtype),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        residual_stride,
        act,
    )


def small_reason(x: Tensor) -> str | None:
    """`too_small`, where the size is known: under a tracer or torch.compile it may be another one at the next call."""
    return None if torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy) else too_small(x)


class _ResidualBlock(nn.Module):
    """What both blocks share: the shortcut, the choice of path and the fused path over `chain()`."""

    expansion: int
    _depth: int  # convolutions on the residual branch

    def chain(self) -> list[tuple[nn.Module, nn.Module]]:
        """The residual branch's convolutions, each with its norm."""
        modules = self._modules
        return [(modules[f"conv{i}"], modules[f"bn{i}"]) for i in range(1, self._depth + 1)]

    def unfused_reason(self, x: Tensor) -> str | None:
        """Why this block would not run `x` through the inference ops; None when it would."""
        return self._reason(x, INFERENCE) or self.parts().shortcut_reason()

    def untrainable_reason(self, x: Tensor) -> str | None:
        """Why this block would not run `x` through the differentiable ops asked for by name; None when it would."""
        if torch.compiler.is_compiling():
            return "torch's own modules train under torch.compile"
        return self._reason(x, TRAINING) or self.parts().broadcast_reason()

    def _reason(self, x: Tensor, path: Path) -> str | None:
        reason = chain_reason(x, self._modules, parts_of(path, self._depth), path)
        shortcut = self.downsample
        if reason is not None or shortcut is None:
            return reason
        reason = hook_reason(shortcut)
        if reason is not None:
            return f"downsample {reason}"
        if type(shortcut) is nn.Sequential and len(shortcut) == 2:
            parts = tuple(zip(shortcut._modules, (path.projection, path.norm)))
            return chain_reason(x, shortcut._modules, parts, path, "downsample.")
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

    def parts(self) -> trainable.Parts:
        """The modules that the differentiable path works on."""
        shortcut = self.downsample
        projection = (shortcut[0], shortcut[1]) if isinstance(shortcut, nn.Sequential) else None
        if isinstance(shortcut, OptionAShortcut):
            return trainable.Parts(self.chain(), None, (shortcut.out_channels - shortcut.in_channels, shortcut.stride))
        return trainable.Parts(self.chain(), projection)

    def _differentiable(self, x: Tensor) -> Tensor:
        return trainable.run_blocks(x, [self.parts()])

    @one_backend
    def _run(self, x: Tensor) -> Tensor | None:
        """The block's output through fused ops; None where its modules must be called one by one."""
        reason = small_reason(x) or self.unfused_reason(x)
        run = self._fused
        if reason is not None and trains_by_name():
            reason, run = self.untrainable_reason(x), self._differentiable
        note_path(self, reason)
        return run(x) if reason is None else None


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions and a skip: the block of ResNet-18 and ResNet-34 (He et al. 2015, figure 5 left).

    Constructor arguments, children, parameters and errors are those of `torchvision.models.resnet.BasicBlock`;
    `downsample` may also be an `OptionAShortcut`.  Input (N, inplanes, H, W), output (N, planes, P, Q).
    """

    expansion: int = 1
    _depth = 2

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
        """`relu(branch(x) + shortcut(x))`: x (N, inplanes, H, W) to (N, planes * expansion, ceil(H / stride), ...)."""
        if not torch.jit.is_scripting():
            fused = self._run(x)
            if fused is not None:
                return fused
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
        """`relu(branch(x) + shortcut(x))`: x (N, inplanes, H, W) to (N, planes * expansion, ceil(H / stride), ...)."""
        if not torch.jit.is_scripting():
            fused = self._run(x)
            if fused is not None:
                return fused
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
