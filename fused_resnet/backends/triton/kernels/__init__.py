"""Every Triton kernel of the package, by the name that a launch plan gives."""

from .conv import conv_pointer, conv_runs, conv_tma
from .passes import option_a_shortcut, scale_shift_act
from .pool import global_avg_pool, max_pool
from .training.dgrad import conv_dgrad, conv_gram_finish
from .training.fprop import conv_bn_add_act, conv_stats
from .training.gram_exact import conv_gram_exact
from .training.one_read import conv_backward_1x1
from .training.passes import (
    bn_act_backward,
    bn_add_act,
    bn_backward_apply,
    bn_finalize,
    bn_relu_maxpool,
    bn_relu_maxpool_backward,
    channel_stats,
)
from .training.wgrad import conv_gram, conv_wgrad

KERNELS = {
    "conv_pointer": conv_pointer,
    "conv_runs": conv_runs,
    "conv_tma": conv_tma,
    "scale_shift_act": scale_shift_act,
    "option_a_shortcut": option_a_shortcut,
    "max_pool": max_pool,
    "global_avg_pool": global_avg_pool,
    "conv_stats": conv_stats,
    "conv_bn_add_act": conv_bn_add_act,
    "conv_dgrad": conv_dgrad,
    "conv_gram_finish": conv_gram_finish,
    "conv_wgrad": conv_wgrad,
    "conv_gram": conv_gram,
    "conv_gram_exact": conv_gram_exact,
    "conv_backward_1x1": conv_backward_1x1,
    "channel_stats": channel_stats,
    "bn_add_act": bn_add_act,
    "bn_backward_apply": bn_backward_apply,
    "bn_finalize": bn_finalize,
    "bn_act_backward": bn_act_backward,
    "bn_relu_maxpool": bn_relu_maxpool,
    "bn_relu_maxpool_backward": bn_relu_maxpool_backward,
}
