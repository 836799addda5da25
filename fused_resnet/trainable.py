"""The differentiable path of stems and blocks: which norms use the batch, and what a step leaves in them.

Taken where a backend is asked for by name; under `auto` torch's own modules train, until this path has been measured.
Running statistics change only after the Function has succeeded, exactly as `BatchNorm2d` changes them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import eligibility
from .autograd import BlockPlan, ConvBnActFunction, Geometry, ResidualFunction, StemPlan
from .eligibility import compute_dtype
from .shapes import output_extent


def conv_reason(conv: nn.Module, x: Tensor) -> str | None:
    """Why `conv` is not a plain convolution that the differentiable path knows."""
    reason = eligibility.conv_reason(conv, x)
    if reason is None and (conv.groups != 1 or conv.dilation != (1, 1)):
        return "is grouped or dilated, which only inference fuses"
    return reason


def norm_reason(norm: nn.Module, x: Tensor) -> str | None:
    """Why `norm` is not a batch norm that the differentiable path knows."""
    return None if type(norm) is nn.BatchNorm2d else f"is {type(norm).__name__}, not BatchNorm2d"


def _batch_statistics(norm: nn.BatchNorm2d) -> bool:
    return norm.training or norm.running_mean is None


def _tensors(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    constants = (None, None) if _batch_statistics(norm) else (norm.running_mean, norm.running_var)
    return conv.weight, norm.weight, norm.bias, *constants


def _geometry(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Geometry:
    return Geometry(conv.stride, conv.padding, norm.eps)


def _require_values(norm: nn.BatchNorm2d, size: tuple[int, ...]) -> None:
    """BatchNorm2d's own complaint, before anything runs."""
    if _batch_statistics(norm) and size[0] * size[2] * size[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {torch.Size(size)}")


def _output_size(conv: nn.Conv2d, size: tuple[int, ...]) -> tuple[int, ...]:
    extents = (output_extent(size[i + 2], conv.kernel_size[i], conv.stride[i], conv.padding[i]) for i in range(2))
    return (size[0], conv.out_channels, *extents)


class Parts(NamedTuple):
    """A residual block's modules.

    `chain`: the convolutions of the residual branch with their norms; `projection`: the shortcut's, or None;
    `residual_stride`: an option-A shortcut's stride, 1 otherwise.
    """

    chain: list[tuple[nn.Conv2d, nn.BatchNorm2d]]
    projection: tuple[nn.Conv2d, nn.BatchNorm2d] | None
    residual_stride: int

    def units(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        return self.chain if self.projection is None else [*self.chain, self.projection]

    def sizes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What each unit puts out for an input of `size`, in the order of `units`."""
        sizes, current = [], size
        for conv, _ in self.chain:
            current = _output_size(conv, current)
            sizes.append(current)
        return sizes if self.projection is None else [*sizes, _output_size(self.projection[0], size)]

    def plan(self, dtype: torch.dtype) -> BlockPlan:
        last = self.chain[-1][0]
        return BlockPlan(
            units=tuple(_geometry(*unit) for unit in self.chain),
            downsample=None if self.projection is None else _geometry(*self.projection),
            residual_stride=self.residual_stride,
            pointwise_tail=last.kernel_size == (1, 1) and last.stride == (1, 1),
            dtype=dtype,
        )


def run_blocks(x: Tensor, blocks: list[Parts]) -> Tensor:
    """Residual blocks one after the other; differentiable in x and in every parameter.

    Raises:
        ValueError: a norm that needs the batch's statistics would see one value a channel.
    """
    size, counts = tuple(x.shape), []
    for parts in blocks:
        sizes = parts.sizes(size)
        for (_, norm), output in zip(parts.units(), sizes, strict=True):
            _require_values(norm, output)
            counts.append(output[0] * output[2] * output[3])
        size = sizes[len(parts.chain) - 1]
    dtype = compute_dtype(x)
    units = [unit for parts in blocks for unit in parts.units()]
    tensors = [tensor for unit in units for tensor in _tensors(*unit)]
    plans = tuple(parts.plan(dtype) for parts in blocks)
    out, *statistics = ResidualFunction.apply(plans, _dense(x, dtype), *tensors)
    for (_, norm), mean, var, count in zip(units, statistics[::2], statistics[1::2], counts, strict=True):
        _update(norm, mean, var, count)
    return out


def run_stem(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d | None) -> Tensor:
    """`pool(relu(norm(conv(x))))`, differentiable; raises as `run_blocks`."""
    size = _output_size(conv, tuple(x.shape))
    _require_values(norm, size)
    dtype = compute_dtype(x)
    window = None if pool is None else (pool.kernel_size, pool.stride, pool.padding)
    plan = StemPlan(_geometry(conv, norm), window, dtype)
    y, mean, var = ConvBnActFunction.apply(plan, _dense(x, dtype), *_tensors(conv, norm))
    _update(norm, mean, var, size[0] * size[2] * size[3])
    return y


def _dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _update(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """What `BatchNorm2d.forward` does to its running statistics; `var` is biased."""
    if not norm.training or not norm.track_running_stats:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    unbiased = var * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)
