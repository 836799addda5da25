"""Hand-written CUDA C++ kernels for float16 and bfloat16, compiled into `fused_resnet._C` where nvcc was found.

From an op to its kernel: this file, the op's own, `launch.py` (tensors to addresses), `csrc/bindings.cpp`, and the
kernel's folder in `csrc/kernels/`.  Outputs are channels_last; inputs in another layout are copied into it first, and a
tensor that does not begin at a multiple of 16 bytes is refused, unless it is a batch of images.

It has kernels for what `availability.OPS` lists, and none of them has run on a GPU: `auto` takes one where
`availability.PROVEN_ARCHITECTURES` names the device's architecture, which is nowhere yet; `use_backend("cuda")` takes
them by name, for training too, and raises where a layer is none of theirs.
"""

from .availability import unavailable_reason, unproven_reason, unsupported_reason
from .conv1x1 import conv1x1_bn_add_act, gram_products
from .conv1x1_gradients import conv1x1_backward
from .convolutions import conv_dgrad, conv_stats, conv_wgrad
from .gram_matrix import gram, gram_backward_finish, gram_finalize
from .inference import bottleneck_inference, conv_scale_shift_act, global_avg_pool
from .passes import (
    bn_act_backward,
    bn_add_act,
    bn_backward_apply,
    bn_finalize,
    bn_relu_maxpool,
    bn_relu_maxpool_backward,
    channel_stats,
)
from .stem import conv_bn_relu_maxpool

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
    "unavailable_reason",
    "unproven_reason",
    "unsupported_reason",
]
