"""The raw ops of training: plain functions on tensors, registered with torch as `torch.ops.fused_resnet.*`.

They are what the autograd Functions of `fused_resnet.autograd` are made of, and have no backward of their own.  In the
equations of their docstrings,

*wide* is float32, or float64 where the maps are float64: the dtype of every vector and sum that an op returns.  Vectors
    that go in may be of any floating-point dtype and are used wide.
*maps* are logical NCHW, of one dtype and device, in any strides; an output map is channels_last if the first one is.
*a norm prologue* is `a = relu(z * in_scale + in_shift)` per channel, computed wide and rounded to z's dtype; where both
    vectors are None, `a = z`.  A convolution's padding is zero after the prologue.
*a batch norm's backward* is the prologue `dz = a * g + b * z + c` with a vector of coefficients each, computed wide and
    rounded to g's dtype: it turns the gradient g of the norm's output into that of its input.  Where b and c are None
    (constant statistics), `dz = a * g`.
*a mask* `grad * (out > 0)` selects: what a NaN or an infinity in `grad` meets where out <= 0 is dropped, and a NaN in
    `out` lets `grad` pass, as in torch's ReLU.
*partials* are (tiles, 3, K), wide: count, mean and M2, the sum of squared deviations from that mean, of each run of 128
    pixels in (n, p, q) order; tiles = ceil(N * P * Q / 128).  A backend may group the pixels otherwise within as many
    rows, empty ones (count, mean and M2 zero) included, so that only their merge means something.

Every op raises ArgumentError, before anything runs, for shapes, dtypes or devices that do not go together,
BackendError where the backend asked for by name cannot take the call, and RuntimeError for an argument that requires a
gradient while gradients are enabled.  An empty batch gives empty maps and zero sums.
"""

from .conv import ONE_READ_FILTERS, conv1x1_backward, conv_dgrad, conv_stats, conv_wgrad
from .gram import conv1x1_bn_add_act, gram, gram_backward_finish, gram_finalize, gram_products
from .norm import bn_act_backward, bn_add_act, bn_backward_apply, bn_finalize, channel_stats
from .pool import bn_relu_maxpool, bn_relu_maxpool_backward

OPS = (
    "conv_stats",
    "channel_stats",
    "bn_finalize",
    "gram",
    "gram_finalize",
    "conv1x1_bn_add_act",
    "bn_add_act",
    "conv_dgrad",
    "conv_wgrad",
    "conv1x1_backward",
    "gram_products",
    "gram_backward_finish",
    "bn_relu_maxpool",
    "bn_relu_maxpool_backward",
    "bn_act_backward",
    "bn_backward_apply",
)

__all__ = [
    "ONE_READ_FILTERS",
    "OPS",
    "bn_act_backward",
    "bn_add_act",
    "bn_backward_apply",
    "bn_finalize",
    "bn_relu_maxpool",
    "bn_relu_maxpool_backward",
    "channel_stats",
    "conv1x1_backward",
    "conv1x1_bn_add_act",
    "conv_dgrad",
    "conv_stats",
    "conv_wgrad",
    "gram",
    "gram_backward_finish",
    "gram_finalize",
    "gram_products",
]
