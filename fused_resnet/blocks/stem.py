"""What stands before and after the blocks: convolution, norm, ReLU and max-pool, and the global average pool."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.asked import one_backend
from ..ops.dispatch import note_path, trains_by_name
from . import trainable
from .eligibility import INFERENCE, TRAINING, chain_reason, compute_dtype, hook_reason, input_reason, parts_of
from .residual import conv_norm_act, small_reason


def stem_unfused_reason(
    conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module | None, x: Tensor
) -> str | None:
    """Why a stem would be called module by module for `x`; None when it would run as one op."""
    reason = chain_reason(x, {"conv1": conv, "bn1": norm, "relu": relu}, parts_of(INFERENCE, 1), INFERENCE)
    return reason or _pool_reason(conv, pool)


def stem_untrainable_reason(
    conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module | None, x: Tensor
) -> str | None:
    """Why a stem would not run `x` through the differentiable ops; None when it would, where asked for by name."""
    if torch.compiler.is_compiling():
        return "torch's own modules train under torch.compile"
    reason = chain_reason(x, {"conv1": conv, "bn1": norm, "relu": relu}, parts_of(TRAINING, 1), TRAINING)
    return reason or _pool_reason(conv, pool)


def _pool_reason(conv: nn.Conv2d, pool: nn.Module | None) -> str | None:
    if pool is None:
        return None
    if type(pool) is not nn.MaxPool2d:
        return f"maxpool is {type(pool).__name__}, not MaxPool2d"
    plain = all(isinstance(v, int) for v in (pool.kernel_size, pool.stride, pool.padding))
    if not plain or pool.dilation != 1 or pool.ceil_mode or pool.return_indices:
        return "maxpool is not a plain square window"
    if conv.groups != 1 or conv.dilation != (1, 1):
        return "conv1 is grouped or dilated"
    return None if hook_reason(pool) is None else "maxpool has a hook"


@one_backend
def stem_forward(conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module | None, x: Tensor) -> Tensor:
    """`pool(relu(norm(conv(x))))`, as one op where it may be; `pool` None stands for no pooling.

    The fused stem answers in channels_last, which every fused block after it keeps.
    """
    reason = small_reason(x) or stem_unfused_reason(conv, norm, relu, pool, x)
    if reason is not None and trains_by_name():
        reason = stem_untrainable_reason(conv, norm, relu, pool, x)
        if reason is None:
            note_path(conv, None)
            return trainable.run_stem(x, conv, norm, pool)
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
