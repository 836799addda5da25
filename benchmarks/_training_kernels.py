"""The Triton kernels that training launches for one convolution, as plans that `benchmarks.kernels` compiles.

Which ops a convolution needs follows from its place in the block, as `fused_resnet.autograd` calls them.
"""

from __future__ import annotations

from collections.abc import Iterator

from fused_resnet.backends.triton import training_plan as planning
from fused_resnet.backends.triton.plan import _TYPES, LaunchPlan

from ._convolutions import Convolution

_NORM = ("in_scale_ptr", "in_shift_ptr")
_BELOW = ("below_scale_ptr", "below_shift_ptr", "below_mean_ptr", "sums_ptr")


def _types(dtype: str, maps=(), vectors=(), absent=()) -> planning.Types:
    """`maps` of the dtype, `vectors` and partials in float32, `absent` operands."""
    groups = ((maps, _TYPES[dtype]), (vectors, "fp32"), (absent, None))
    return tuple((name, element) for names, element in groups for name in names)


def training_plans(convolution: Convolution, arch: int, dtype: str) -> Iterator[LaunchPlan]:
    """The plans of one training step for `convolution` and the batch norm behind it."""
    shape, name = convolution.shape, convolution.name
    role = name.rpartition(".")[2]
    if role == "downsample" or role == "conv3":
        yield from _unstored(convolution, arch, dtype, normalized=role == "conv3")
    else:
        yield from _stored(convolution, arch, dtype, normalized=role == "conv2", is_stem=name == "conv1")
    rows = shape.gemm_m
    maps = ("g_ptr", "out_ptr", "z_ptr", "y_ptr")
    yield planning.plan_rows("channel_stats", rows, shape.k, _types(dtype, ("z_ptr",), ("y_ptr",)))
    yield planning.plan_rows("bn_act_backward", rows, shape.k, _types(dtype, maps, ("mean_ptr", "sums_ptr")))
    residual = planning.Residual((shape.k, shape.p, shape.q)) if convolution.residual else None
    shortcut = (("residual_ptr",), ()) if residual else ((), ("residual_ptr",))
    types = _types(dtype, ("z_ptr", "y_ptr", *shortcut[0]), ("scale_ptr", "shift_ptr"), shortcut[1])
    yield planning.plan_bn_add_act(shape.n, shape.p, shape.q, shape.k, types, residual, convolution.relu)
    vectors = ("partials_ptr", "bn_weight_ptr", "bn_bias_ptr", "y_ptr", "var_ptr", "invstd_ptr", "scale_ptr")
    types = _types(dtype, (), (*vectors, "shift_ptr"))
    yield planning.plan_bn_finalize(planning.tiles_of(rows), shape.k, 1e-5, types)


def _stored(convolution: Convolution, arch: int, dtype: str, normalized: bool, is_stem: bool) -> Iterator[LaunchPlan]:
    """A convolution whose output is stored before its batch norm."""
    shape = convolution.shape
    norm = (_NORM, ()) if normalized else ((), _NORM)
    types = _types(dtype, ("x_ptr", "w_ptr", "y_ptr"), ("partials_ptr", *norm[0]), norm[1])
    yield planning.plan_conv_stats(shape, dtype, arch, types)
    maps, vectors = ("g_ptr", "z_ptr", "x_ptr"), ("a_ptr", "b_ptr", "c_ptr", "y_ptr", *norm[0])
    types = _types(dtype, maps, vectors, ("out_ptr", "center_ptr", "total_ptr", *norm[1]))
    yield planning.plan_conv_wgrad(shape, dtype, arch, types)[0]
    if is_stem:
        yield from _pooling(convolution, dtype)
        return
    gradient, vectors = ("g_ptr", "z_ptr", "w_ptr", "y_ptr"), ("a_ptr", "b_ptr", "c_ptr")
    if normalized:
        absent = ("out_ptr", "skip_ptr", "skip_out_ptr")
        types = _types(dtype, (*gradient, "below_z_ptr"), vectors + _BELOW, absent)
    else:
        absent = ("out_ptr", "below_z_ptr", *_BELOW)
        types = _types(dtype, (*gradient, "skip_ptr", "skip_out_ptr"), vectors, absent)
    yield planning.plan_conv_dgrad(shape, dtype, arch, types)


def _unstored(convolution: Convolution, arch: int, dtype: str, normalized: bool) -> Iterator[LaunchPlan]:
    """A 1x1 convolution whose statistics come from the Gram matrix of its input."""
    shape = convolution.shape
    norm = (_NORM, ()) if normalized else ((), _NORM)
    types = _types(dtype, ("z_ptr",), ("center_ptr", "y_ptr", "total_ptr", *norm[0]), norm[1])
    yield planning.plan_gram(planning.input_of(shape), dtype, arch, types)[0]
    residual = planning.Residual((shape.k, shape.p, shape.q)) if convolution.residual else None
    shortcut = (("residual_ptr",), ()) if residual else ((), ("residual_ptr",))
    maps, vectors = ("x_ptr", "w_ptr", "y_ptr", *shortcut[0]), ("scale_ptr", "shift_ptr", *norm[0])
    types = _types(dtype, maps, vectors, (*norm[1], *shortcut[1]))
    yield planning.plan_conv_bn_add_act(shape, dtype, arch, types, residual, convolution.relu)
    masked = ("g_ptr", "out_ptr")
    vectors, absent = ("center_ptr", "y_ptr", "total_ptr", *norm[0]), ("z_ptr", "a_ptr", "b_ptr", "c_ptr")
    types = _types(dtype, (*masked, "x_ptr"), vectors, (*absent, *norm[1]))
    yield planning.plan_conv_wgrad(shape, dtype, arch, types)[0]
    absent = (*absent, "below_z_ptr", "skip_ptr", "skip_out_ptr", *_BELOW)
    types = _types(dtype, (*masked, "w_ptr", "y_ptr"), (), absent)
    yield planning.plan_conv_dgrad(planning.output_of(shape), dtype, arch, types)
    low = (("w_low_ptr",), ()) if dtype in ("float16", "bfloat16") else ((), ("w_low_ptr",))
    vectors = ("center_ptr", "constant_ptr", "mean_ptr", "sums_ptr", *norm[0])
    types = _types(dtype, ("t_ptr", "z_ptr", "w_ptr", "y_ptr", *low[0]), vectors, (*low[1], *norm[1]))
    yield planning.plan_gram_finish(shape.gemm_m, shape.c, dtype, arch, types)


def _pooling(convolution: Convolution, dtype: str) -> Iterator[LaunchPlan]:
    """The stem's batch norm, ReLU and max pooling, and back."""
    shape = convolution.shape
    size, window = (shape.n, shape.p, shape.q, shape.k), (3, 2, 1)
    argmax = (("argmax_ptr", "u8"),)
    types = _types(dtype, ("z_ptr", "y_ptr"), ("scale_ptr", "shift_ptr")) + argmax
    yield planning.plan_bn_pool(*size, window, types, backward=False)
    vectors = ("scale_ptr", "shift_ptr", "mean_ptr", "sums_ptr")
    yield planning.plan_bn_pool(
        *size, window, _types(dtype, ("z_ptr", "y_ptr", "g_ptr"), vectors) + argmax, backward=True
    )
