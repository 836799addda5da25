"""The differentiable path of stems and blocks: which norms use the batch, and what a step leaves in them.

Taken where a backend is asked for by name; under `auto` torch's own modules train, until this path has been measured.
Running statistics change only after the Function has succeeded, exactly as `BatchNorm2d` changes them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..autograd import BlockPlan, ConvBnActFunction, Geometry, ResidualFunction, StemPlan, sync
from ..shapes import output_extent
from .eligibility import compute_dtype, is_frozen_norm, is_pointwise

Unit = tuple[nn.Conv2d, nn.Module]  # a convolution and its norm


def _batch_statistics(norm: nn.Module) -> bool:
    return not is_frozen_norm(norm) and (norm.training or norm.running_mean is None)


def _tensors(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor | None, ...]:
    constants = (None, None) if _batch_statistics(norm) else (norm.running_mean, norm.running_var)
    return conv.weight, norm.weight, norm.bias, *constants


def _geometry(conv: nn.Conv2d, norm: nn.Module) -> Geometry:
    # a 1x1 filter has nothing to dilate
    dilation = (1, 1) if conv.kernel_size == (1, 1) else conv.dilation
    return Geometry(conv.stride, conv.padding, norm.eps, dilation, conv.groups, sync.group_of(norm))


def _require_norm(norm: nn.Module, geometry: Geometry, size: tuple[int, ...]) -> None:
    """BatchNorm2d's own complaints, before anything runs; where ranks share statistics, the others have values too."""
    for name in ("running_mean", "running_var", "weight", "bias"):
        vector = getattr(norm, name)
        if vector is not None and vector.numel() != size[1]:
            raise RuntimeError(f"{name} should contain {size[1]} elements not {vector.numel()}")
    if _batch_statistics(norm) and geometry.group is None and size[0] * size[2] * size[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {torch.Size(size)}")


def _require_addable(size: tuple[int, ...], residual: tuple[int, ...]) -> None:
    """torch's own complaint about a residual of another size, before anything runs."""
    for i in (3, 2, 1):
        if size[i] != residual[i]:
            raise RuntimeError(
                f"The size of tensor a ({size[i]}) must match the size of tensor b ({residual[i]}) at non-singleton"
                f" dimension {i}: a block's output of {size} cannot take a residual of {residual}; give the block a"
                " downsample that makes it of that size"
            )


def _output_size(conv: nn.Conv2d, size: tuple[int, ...]) -> tuple[int, ...]:
    """What `conv` makes of a map of `size`; raises Conv2d's own complaints, before anything runs."""
    if size[1] != conv.in_channels:
        raise RuntimeError(
            f"Given groups={conv.groups}, weight of size {list(conv.weight.shape)}, expected input{list(size)} to have"
            f" {conv.in_channels} channels, but got {size[1]} channels instead"
        )
    padded = [extent + 2 * padding for extent, padding in zip(size[2:], conv.padding)]
    filters = [dilation * (extent - 1) + 1 for extent, dilation in zip(conv.kernel_size, conv.dilation)]
    if padded[0] < filters[0] or padded[1] < filters[1]:
        raise RuntimeError(
            f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). Kernel size: ({filters[0]} x"
            f" {filters[1]}). Kernel size can't be greater than actual input size"
        )
    extents = (output_extent(*axis) for axis in zip(padded, filters, conv.stride, (0, 0)))
    return (size[0], conv.out_channels, *extents)


class Parts(NamedTuple):
    """A residual block's modules.

    `chain`: the convolutions of the residual branch with their norms; `projection`: the shortcut's, or None;
    `option_a`: the channels that an option-A shortcut adds, and its stride; (0, 1) otherwise.
    """

    chain: list[Unit]
    projection: Unit | None
    option_a: tuple[int, int] = (0, 1)

    def units(self) -> list[Unit]:
        return self.chain if self.projection is None else [*self.chain, self.projection]

    def _added_channels(self) -> tuple[int, int]:
        """The channels that the shortcut gives, and those that they are added to."""
        if self.projection is not None:
            given = self.projection[0].out_channels
        else:
            given = self.chain[0][0].in_channels + self.option_a[0]
        return given, self.chain[-1][0].out_channels

    def shortcut_reason(self) -> str | None:
        """Why the shortcut cannot be added as it is; torch's modules raise, or broadcast it."""
        given, wanted = self._added_channels()
        return None if given == wanted else f"the shortcut gives {given} channels, the last convolution {wanted}"

    def broadcast_reason(self) -> str | None:
        """As `shortcut_reason`, where torch's modules would not raise: `sizes` does, before they change anything."""
        return self.shortcut_reason() if self._added_channels()[0] == 1 else None

    def sizes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What each unit puts out for an input of `size`, in the order of `units`.

        Raises:
            RuntimeError: what the shortcut makes of the input has not the size of the branch's output.
        """
        sizes, current = [], size
        for conv, _ in self.chain:
            current = _output_size(conv, current)
            sizes.append(current)
        if self.projection is not None:
            sizes.append(_output_size(self.projection[0], size))
            residual = sizes[-1]
        else:
            added, stride = self.option_a
            residual = (size[0], size[1] + added, *(output_extent(extent, 1, stride, 0) for extent in size[2:]))
        _require_addable(current, residual)
        return sizes

    def plan(self, dtype: torch.dtype) -> BlockPlan:
        last = self.chain[-1][0]
        return BlockPlan(
            units=tuple(_geometry(*unit) for unit in self.chain),
            downsample=None if self.projection is None else _geometry(*self.projection),
            residual_stride=self.option_a[1],
            pointwise_tail=is_pointwise(last) and last.stride == (1, 1),
            dtype=dtype,
        )


def run_blocks(x: Tensor, blocks: list[Parts]) -> Tensor:
    """Residual blocks one after the other; differentiable in x and in every parameter.

    What is refused is refused before anything runs.  Where ranks share statistics, see `autograd.sync` for what an
    error on one of them leaves on the others.

    Raises:
        ValueError: a norm that needs the batch's statistics would see one value a channel; or ranks are to share
            statistics, and this one is not in the process group, or they do not hold the same norms.
        RuntimeError: a residual of another size than what it is added to.
    """
    dtype = compute_dtype(x)
    plans = tuple(parts.plan(dtype) for parts in blocks)
    geometries = [unit for plan in plans for unit in (*plan.units, plan.downsample) if unit is not None]
    units = [unit for parts in blocks for unit in parts.units()]
    size, sizes = tuple(x.shape), []
    for parts in blocks:
        sizes += parts.sizes(size)
        size = sizes[-1]
    for (_, norm), geometry, output in zip(units, geometries, sizes, strict=True):
        _require_norm(norm, geometry, output)
    wide = torch.promote_types(dtype, torch.float32)
    sync.require_agreement([norm for _, norm in units], [geometry.group for geometry in geometries], wide)
    tensors = [tensor for unit in units for tensor in _tensors(*unit)]
    out, *statistics = ResidualFunction.apply(plans, _dense(x, dtype), *tensors)
    for i, ((_, norm), output) in enumerate(zip(units, sizes, strict=True)):
        _update(norm, *statistics[3 * i : 3 * i + 3], output)
    return out


def run_stem(x: Tensor, conv: nn.Conv2d, norm: nn.Module, pool: nn.MaxPool2d | None) -> Tensor:
    """`pool(relu(norm(conv(x))))`, differentiable; raises as `run_blocks`."""
    size, geometry, dtype = _output_size(conv, tuple(x.shape)), _geometry(conv, norm), compute_dtype(x)
    _require_norm(norm, geometry, size)
    sync.require_agreement([norm], [geometry.group], torch.promote_types(dtype, torch.float32))
    window = None if pool is None else (pool.kernel_size, pool.stride, pool.padding)
    plan = StemPlan(geometry, window, dtype)
    y, *statistics = ConvBnActFunction.apply(plan, _dense(x, dtype), *_tensors(conv, norm))
    _update(norm, *statistics, size)
    return y


def _dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _update(norm: nn.Module, mean: Tensor, var: Tensor, shared: Tensor | None, size: tuple[int, ...]) -> None:
    """What `BatchNorm2d.forward` does to its running statistics.

    `var` is biased; `shared` the values a channel of all ranks, None where the map of `size` has them all.
    """
    if not _batch_statistics(norm) or not norm.training or not norm.track_running_stats:
        return
    norm.num_batches_tracked.add_(1)
    count = size[0] * size[2] * size[3] if shared is None else shared
    if shared is None and count == 0:
        return
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    unbiased = var * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        wide = running.to(torch.promote_types(running.dtype, new.dtype))  # rounded once, as it does
        wide.mul_(1 - momentum).add_(new, alpha=momentum)
        if wide is not running:
            running.copy_(wide)
