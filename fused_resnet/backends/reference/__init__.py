"""Every op in plain PyTorch: what the other backends are judged by, on any device and in any floating-point dtype.

Computed as torchvision's modules compute it, one step after the other, so that in a given dtype it is also the baseline
whose error the faster backends are held to.
"""

from __future__ import annotations

from torch import Tensor

from .gram_matrix import conv1x1_bn_add_act, gram, gram_backward_finish, gram_finalize, gram_products
from .inference import (
    bottleneck_inference,
    conv_bn_relu_maxpool,
    conv_scale_shift_act,
    global_avg_pool,
    normalize,
    scale_and_shift,
)
from .parts import option_a_shortcut
from .training import (
    bn_act_backward,
    bn_add_act,
    bn_backward_apply,
    bn_finalize,
    bn_relu_maxpool,
    bn_relu_maxpool_backward,
    channel_stats,
    conv1x1_backward,
    conv_dgrad,
    conv_stats,
    conv_wgrad,
)

__all__ = [
    "bn_act_backward",
    "bn_add_act",
    "bn_backward_apply",
    "bn_finalize",
    "bn_relu_maxpool",
    "bn_relu_maxpool_backward",
    "bottleneck_inference",
    "channel_stats",
    "conv1x1_backward",
    "conv1x1_bn_add_act",
    "conv_bn_relu_maxpool",
    "conv_dgrad",
    "conv_scale_shift_act",
    "conv_stats",
    "conv_wgrad",
    "global_avg_pool",
    "gram",
    "gram_backward_finish",
    "gram_finalize",
    "gram_products",
    "normalize",
    "option_a_shortcut",
    "scale_and_shift",
    "unavailable_reason",
    "unsupported_reason",
]


def unavailable_reason() -> str | None:
    return None


def unsupported_reason(op: str, x: Tensor, weight: Tensor | None = None, **arguments) -> str | None:
    return None
