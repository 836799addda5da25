"""Every Triton kernel of the package, by the name that a launch plan gives."""

from .conv import conv_pointer, conv_runs, conv_tma
from .pointwise import option_a_shortcut, scale_shift_act
from .pool import global_avg_pool, max_pool

KERNELS = {
    "conv_pointer": conv_pointer,
    "conv_runs": conv_runs,
    "conv_tma": conv_tma,
    "scale_shift_act": scale_shift_act,
    "option_a_shortcut": option_a_shortcut,
    "max_pool": max_pool,
    "global_avg_pool": global_avg_pool,
}
