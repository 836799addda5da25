"""The raw ops: plain functions on tensors, registered with torch as `torch.ops.fused_resnet.*`.

Each checks its arguments, picks a backend (`fused_resnet.ops.dispatch`) and runs there.  They work under torch.compile
and torch.export.  They have no backward, and refuse arguments that require a gradient while gradients are enabled: the
modules of `fused_resnet` choose a differentiable path then.
"""

from .bottleneck import bottleneck_inference
from .conv import conv_bn_relu_maxpool, conv_scale_shift_act, option_a_shortcut
from .dispatch import use_backend
from .pool import global_avg_pool

OPS = ("conv_scale_shift_act", "conv_bn_relu_maxpool", "global_avg_pool", "option_a_shortcut", "bottleneck_inference")

__all__ = [
    "OPS",
    "bottleneck_inference",
    "conv_bn_relu_maxpool",
    "conv_scale_shift_act",
    "global_avg_pool",
    "option_a_shortcut",
    "use_backend",
]
