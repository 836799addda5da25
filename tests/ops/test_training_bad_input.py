"""Wrong arguments to the training ops: one clear error that names them, before a backend is chosen."""

from __future__ import annotations

import pytest
import torch

import fused_resnet
from fused_resnet.ops import dispatch, training
from tests.support.training_cases import CASES


def wrong(op: str, with_: tuple[str, ...] = (), **changes):
    """A call of `op` as its first case with these words makes it, but for `changes`."""
    case = next(case for case in CASES if case.op == op and set(with_) <= set(case.with_))

    def call():
        arguments = case.inputs()
        for name, change in changes.items():
            arguments[name] = change(arguments[name]) if callable(change) else change
        return getattr(training, op)(**arguments)

    return call


def half(x):
    return x.half()


def meta(x):
    return x.to("meta")


def shorter(x):
    return x[:-1]


def smaller(x):
    return x[:, :, :-1]


# call, then words that the error must hold: what was given and what was expected
BAD_CALLS = {
    "x in 3-D": (wrong("conv_stats", x=lambda x: x[0]), ["conv_stats", "x must be 4-D", "3-D"]),
    "filters for other channels": (wrong("conv_stats", x=lambda x: x[:, :7]), ["16 channels", "got 7"]),
    "filters of another dtype": (wrong("conv_stats", weight=half), ["float32", "weight is torch.float16"]),
    "scale of another size": (wrong("conv_stats", in_scale=shorter), ["in_scale", "(16,)", "(15,)"]),
    "half of a prologue": (wrong("conv_stats", in_shift=None), ["in_scale, in_shift", "in_shift is None"]),
    "scale of integers": (wrong("conv_stats", in_scale=lambda s: s.int()), ["in_scale", "floating", "int32"]),
    "scale elsewhere": (wrong("conv_stats", in_scale=meta), ["x is on cpu", "in_scale is on meta"]),
    "map of integers": (wrong("channel_stats", z=lambda z: z.int()), ["channel_stats", "z", "int32"]),
    "partials in 2-D": (wrong("bn_finalize", partials=lambda p: p[0]), ["(tiles, 3, K)", "(3, 24)"]),
    "partials of four": (wrong("bn_finalize", partials=torch.ones(2, 4, 5)), ["(tiles, 3, K)", "(2, 4, 5)"]),
    "partials in half precision": (wrong("bn_finalize", partials=half), ["float32 or float64", "float16"]),
    "norm weight of another size": (wrong("bn_finalize", bn_weight=shorter), ["bn_weight", "(24,)", "(23,)"]),
    "norm bias elsewhere": (wrong("bn_finalize", bn_bias=meta), ["partials is on cpu", "bn_bias is on meta"]),
    "stride of zero": (wrong("gram", stride=0), ["gram", "stride", "at least 1", "0"]),
    "prologue of other channels": (wrong("gram", ("prologue",), in_shift=shorter), ["in_shift", "(24,)", "(23,)"]),
    "filters of other channels": (
        wrong("gram", weight=lambda w: w[:, :7]),
        ["weight", "(40, 24, 1, 1)", "(40, 7, 1, 1)"],
    ),
    "center in half precision": (wrong("gram_finalize", center=half), ["center", "float32", "float16"]),
    "gram not square": (wrong("gram_finalize", gram=shorter), ["gram", "(23, 23)", "(23, 24)"]),
    "gram in half precision": (wrong("gram_finalize", gram=half), ["gram", "float32", "float16"]),
    "total of another size": (wrong("gram_finalize", total=shorter), ["total", "(24,)", "(23,)"]),
    "negative count": (wrong("gram_finalize", count=-1), ["count", "at least 0", "-1"]),
    "a 3x3 filter": (wrong("gram_finalize", weight=torch.ones(4, 24, 3, 3)), ["(4, 24, 1, 1)", "(4, 24, 3, 3)"]),
    "a matrix for filters": (wrong("gram_finalize", weight=torch.ones(4, 24)), ["4-D", "(K, 24, 1, 1)", "(4, 24)"]),
    "1x1 with a 3x3 filter": (wrong("conv1x1_bn_add_act", weight=torch.ones(4, 24, 3, 3)), ["(K, 24, 1, 1)"]),
    "1x1 with one stride": (wrong("conv1x1_bn_add_act", stride=(1,)), ["stride", "two integers", "[1]"]),
    "1x1 scale of another size": (wrong("conv1x1_bn_add_act", scale=shorter), ["scale", "(40,)", "(39,)"]),
    "1x1 residual of another size": (
        wrong("conv1x1_bn_add_act", residual=smaller),
        ["(2, 40, 9, 11)", "(2, 40, 8, 11)"],
    ),
    "residual of another dtype": (wrong("bn_add_act", residual=half), ["z is torch.float32", "residual", "float16"]),
    "residual of another size": (wrong("bn_add_act", residual=smaller), ["(2, 24, 9, 11)", "(2, 24, 8, 11)"]),
    "residual stride of zero": (wrong("bn_add_act", residual_stride=0), ["residual_stride", "at least 1", "0"]),
    "another activation": (wrong("bn_add_act", act="gelu"), ["act", "relu, identity", "gelu"]),
    "shift of another size": (wrong("bn_add_act", shift=shorter), ["shift", "(24,)", "(23,)"]),
    "g of another size": (wrong("conv_dgrad", g=smaller, z=smaller), ["(2, 24, 9, 11)", "g of (2, 24, 8, 11)"]),
    "z unlike g": (wrong("conv_dgrad", z=smaller), ["z must have shape (2, 24, 9, 11)", "(2, 24, 8, 11)"]),
    "coefficients without z": (wrong("conv_dgrad", z=None), ["z is None", "b and c", "pass z"]),
    "one coefficient of two": (wrong("conv_dgrad", b=None), ["b, c", "b is None"]),
    "coefficient of another size": (wrong("conv_dgrad", a=shorter), ["a must have shape (24,)", "(23,)"]),
    "dgrad filters of another dtype": (wrong("conv_dgrad", weight=half), ["g is torch.float32", "weight", "float16"]),
    "input size of three": (wrong("conv_dgrad", input_size=[2, 16, 9]), ["input_size", "four", "[2, 16, 9]"]),
    "input size of other channels": (
        wrong("conv_dgrad", input_size=[2, 15, 9, 11]),
        ["(24, 16, 3, 3)", "(2, 15, 9, 11)"],
    ),
    "dgrad with negative padding": (wrong("conv_dgrad", padding=(-1, 0)), ["padding", "at least 0", "[-1, 0]"]),
    "below of another size": (wrong("conv_dgrad", ("below",), below_z=smaller), ["below_z", "(2, 16, 9, 11)"]),
    "below without its mean": (wrong("conv_dgrad", ("below",), below_mean=None), ["below_z", "below_mean is None"]),
    "skip of another size": (wrong("conv_dgrad", ("skip_out",), skip=smaller), ["skip", "(2, 16, 9, 11)"]),
    "mask without a skip": (wrong("conv_dgrad", ("skip_out",), skip=None), ["skip_out", "without the skip"]),
    "wgrad of other channels": (wrong("conv_wgrad", weight_size=[24, 15, 3, 3]), ["(24, 15, 3, 3)", "(2, 16, 9, 11)"]),
    "wgrad of another output": (wrong("conv_wgrad", stride=(2, 2)), ["stride [2, 2]", "(2, 24, 5, 6)"]),
    "wgrad x of another dtype": (wrong("conv_wgrad", x=half), ["g is torch.float32", "x is torch.float16"]),
    "products of another size": (wrong("gram_products", grad=smaller, out=None), ["grad", "(2, 40, 9, 11)"]),
    "products with another output": (wrong("gram_products", out=smaller), ["out", "(2, 40, 9, 11)", "(2, 40, 8, 11)"]),
    "products with 4-D filters": (wrong("gram_products", weight=lambda w: w[..., None, None]), ["weight", "(40, 24)"]),
    "products with another dtype": (wrong("gram_products", weight=half), ["weight is torch.float16"]),
    "centre of another size": (wrong("gram_products", center=shorter), ["center", "(24,)", "(23,)"]),
    "t of another size": (wrong("gram_backward_finish", t=smaller), ["z must have shape (2, 24, 8, 11)"]),
    "quadratic not square": (wrong("gram_backward_finish", quadratic=shorter), ["quadratic", "(24, 24)", "(23, 24)"]),
    "constant of another size": (wrong("gram_backward_finish", constant=shorter), ["constant", "(24,)"]),
    "window too large for a byte": (wrong("bn_relu_maxpool", kernel=17), ["kernel", "1 to 16", "17"]),
    "too much padding": (wrong("bn_relu_maxpool", padding=2), ["padding", "half the kernel", "2"]),
    "window larger than the map": (wrong("bn_relu_maxpool", kernel=16, padding=0), ["13 x 11", "window of 16"]),
    "argmax of integers": (wrong("bn_relu_maxpool_backward", argmax=lambda m: m.int()), ["argmax", "uint8", "int32"]),
    "argmax of another size": (wrong("bn_relu_maxpool_backward", argmax=smaller), ["argmax", "(2, 16, 7, 6)"]),
    "pool gradient of another size": (
        wrong("bn_relu_maxpool_backward", grad=smaller),
        ["(2, 16, 7, 6)", "(2, 16, 6, 6)"],
    ),
    "mean of another size": (wrong("bn_act_backward", mean=shorter), ["mean", "(24,)", "(23,)"]),
    "out of another dtype": (wrong("bn_act_backward", ("out",), out=half), ["grad is torch.float32", "out", "float16"]),
    "z elsewhere": (wrong("bn_act_backward", z=meta), ["grad is on cpu", "z is on meta"]),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused(name):
    call, words = BAD_CALLS[name]
    with dispatch.recording() as decisions, pytest.raises(fused_resnet.ArgumentError) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{caught.value} does not say {missing}"
    assert decisions == [], "a backend was chosen for arguments that cannot run"


def test_bad_calls_are_refused_on_fake_tensors():
    with pytest.raises(fused_resnet.ArgumentError, match=r"shift must have shape \(4,\), got \(5,\)"):
        training.bn_add_act(
            torch.ones(1, 4, 2, 2, device="meta"),
            torch.ones(4, device="meta"),
            torch.ones(5, device="meta"),
            None,
            1,
            "relu",
        )
