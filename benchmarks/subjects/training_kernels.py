"""The Triton kernels that training launches for one convolution, as plans that `benchmarks.kernels` compiles.

Which ops a convolution needs follows from its place in the block, as `fused_resnet.autograd` calls them.
"""

from __future__ import annotations

from collections.abc import Iterator

from fused_resnet.backends.triton.plan import _TYPES, LaunchPlan
from fused_resnet.backends.triton.training import plan as planning
from fused_resnet.backends.triton.training import split_plan as split_planning
from fused_resnet.backends.triton.training.one_read import ONE_READ_FILTERS

from .convolutions import Convolution

_NORM = ("in_scale_ptr", "in_shift_ptr")
_BN_BACKWARD = ("a_ptr", "b_ptr", "c_ptr")
_BELOW = ("below_scale_ptr", "below_shift_ptr", "below_mean_ptr", "sums_ptr")
_EPILOGUE = ("below_z_ptr", *_BELOW, "below_out_ptr", "skip_ptr", "skip_out_ptr")


def _types(dtype: str, maps=(), vectors=(), absent=()) -> planning.Types:
    """`maps` of the dtype, `vectors` and partials in float32, `absent` operands."""
    groups = ((maps, _TYPES[dtype]), (vectors, "fp32"), (absent, None))
    return tuple((name, element) for names, element in groups for name in names)


def training_plans(convolution: Convolution, arch: int, dtype: str) -> Iterator[LaunchPlan]:
    """The plans of one training step for `convolution` and the batch norm behind it."""
    shape, name = convolution.shape, convolution.name
    role = name.rpartition(".")[2]
    if role in ("downsample", "conv3"):
        yield from _unstored(convolution, arch, dtype, normalized=role == "conv3")
    else:
        yield from _stored(convolution, arch, dtype)
    rows = shape.gemm_m
    yield planning.plan_rows("channel_stats", rows, shape.k, _types(dtype, ("z_ptr",), ("y_ptr",)))
    types = _types(dtype, ("g_ptr", "out_ptr", "z_ptr", "y_ptr"), ("mean_ptr", "sums_ptr"))
    yield planning.plan_rows("bn_act_backward", rows, shape.k, types)
    types = _types(dtype, ("g_ptr", "z_ptr", "y_ptr"), _BN_BACKWARD)
    yield planning.plan_rows("bn_backward_apply", rows, shape.k, types)
    residual = planning.Residual((shape.k, shape.p, shape.q)) if convolution.residual else None
    shortcut = (("residual_ptr",), ()) if residual else ((), ("residual_ptr",))
    types = _types(dtype, ("z_ptr", "y_ptr", *shortcut[0]), ("scale_ptr", "shift_ptr"), shortcut[1])
    yield planning.plan_bn_add_act(shape.n, shape.p, shape.q, shape.k, types, residual, convolution.relu)
    vectors = ("partials_ptr", "bn_weight_ptr", "bn_bias_ptr", "y_ptr", "var_ptr", "invstd_ptr", "scale_ptr")
    types = _types(dtype, (), (*vectors, "shift_ptr"))
    yield planning.plan_bn_finalize(planning.tiles_of(rows), shape.k, 1e-5, types)


def class_of(plan: LaunchPlan) -> tuple:
    """Equal for plans whose kernels differ in trip counts only: beyond 128 channels tiles have all the same shape.

    The kernel of both gradients holds tiles of all filters, and every shape of it is a class."""
    widest = 128 if plan.kernel != "conv_backward_1x1" else 1 << 31
    channels = ("C", "K", "RES_C")
    constants = {name: min(value, widest) if name in channels else value for name, value in plan.constexprs.items()}
    parts = (constants, plan.pointers, {"warps": plan.num_warps, "stages": plan.num_stages})
    return plan.kernel, *(tuple(sorted(part.items())) for part in parts)


def _stored(convolution: Convolution, arch: int, dtype: str) -> Iterator[LaunchPlan]:
    """A convolution whose output is stored before its batch norm."""
    shape, is_inner = convolution.shape, convolution.name.endswith(".conv2")
    norm = (_NORM, ()) if is_inner else ((), _NORM)
    types = _types(dtype, ("x_ptr", "w_ptr", "y_ptr"), ("partials_ptr", *norm[0]), norm[1])
    yield planning.plan_conv_stats(shape, dtype, arch, types)
    is_pointwise = (shape.r, shape.s) == (1, 1)
    if is_pointwise and shape.k <= ONE_READ_FILTERS:
        yield _one_read(convolution, arch, dtype)
        return
    maps, vectors = ("g_ptr", "z_ptr", "x_ptr"), (*_BN_BACKWARD, "y_ptr", *norm[0])
    types = _types(dtype, maps, vectors, ("out_ptr", "center_ptr", "total_ptr", *norm[1]))
    yield split_planning.plan_conv_wgrad(shape, dtype, arch, types)[0]
    if convolution.name == "conv1":
        yield from _pooling(convolution, dtype)
        return
    if is_inner:
        maps, vectors, stride = ("below_z_ptr",), _BELOW, 1
    elif _follows_block(convolution):
        # a bottleneck adds its output's gradient; a basic block that gradient masked, with sums for the block below
        maps, vectors = ("below_out_ptr", "skip_ptr", "skip_out_ptr"), ()
        if not is_pointwise:
            maps, vectors = ("below_out_ptr", "skip_ptr", "below_z_ptr"), ("below_mean_ptr", "sums_ptr")
        stride = 1
    else:
        maps, vectors, stride = ("skip_ptr",), (), _block_stride(convolution)
    absent = [name for name in _EPILOGUE if name not in (*maps, *vectors)]
    gradient = ("g_ptr", "z_ptr", "w_ptr", "y_ptr")
    types = _types(dtype, (*gradient, *maps), (*_BN_BACKWARD, *vectors), ("out_ptr", *absent))
    yield planning.plan_conv_dgrad(shape, dtype, arch, types, stride)


def _follows_block(convolution: Convolution) -> bool:
    """Whether the convolution reads the output of a block of its own stage, and not a projection's input."""
    shape = convolution.shape
    return not convolution.name.endswith(".0.conv1") or (shape.r == 3 and shape.c == shape.k)


def _block_stride(convolution: Convolution) -> int:
    """Of the block that starts with `convolution`."""
    return 1 if convolution.name.startswith("layer1.") else 2


def _one_read(convolution: Convolution, arch: int, dtype: str) -> LaunchPlan:
    """A bottleneck's first convolution, whose gradients take one launch."""
    follows = _follows_block(convolution)
    skip = (("skip_ptr", "skip_out_ptr"), ()) if follows else (("skip_ptr",), ("skip_out_ptr",))
    maps, vectors = ("g_ptr", "z_ptr", "w_ptr", "x_ptr", "y_ptr", *skip[0]), (*_BN_BACKWARD, "slices_ptr")
    types = _types(dtype, maps, vectors, ("out_ptr", *_NORM, "center_ptr", "total_ptr", *skip[1]))
    stride = 1 if follows else _block_stride(convolution)
    return split_planning.plan_one_read(convolution.shape, dtype, arch, types, follows, stride)[0]


def _unstored(convolution: Convolution, arch: int, dtype: str, normalized: bool) -> Iterator[LaunchPlan]:
    """A 1x1 convolution whose statistics come from the Gram matrix of its input."""
    shape = convolution.shape
    norm = (_NORM, ()) if normalized else ((), _NORM)
    types = _types(dtype, ("z_ptr",), ("center_ptr", "y_ptr", *norm[0]), norm[1])
    yield split_planning.plan_gram(planning.input_of(shape), dtype, arch, types)[0]
    types = _types(dtype, ("z_ptr",), ("center_ptr", *norm[0]), norm[1])
    yield split_planning.plan_gram_exact(planning.input_of(shape), (*types, ("flag_ptr", "i32"), ("y_ptr", "fp64")))[0]
    residual = planning.Residual((shape.k, shape.p, shape.q)) if convolution.residual else None
    shortcut = (("residual_ptr",), ()) if residual else ((), ("residual_ptr",))
    maps, vectors = ("x_ptr", "w_ptr", "y_ptr", *shortcut[0]), ("scale_ptr", "shift_ptr", *norm[0])
    types = _types(dtype, maps, vectors, (*norm[1], *shortcut[1]))
    yield planning.plan_conv_bn_add_act(shape, dtype, arch, types, residual, convolution.relu)
    yield from _gram_products(convolution, arch, dtype, norm)
    vectors = ("center_ptr", "constant_ptr", "mean_ptr", "sums_ptr", *norm[0])
    types = _types(dtype, ("t_ptr", "z_ptr", "w_ptr", "y_ptr"), vectors, norm[1])
    yield planning.plan_gram_finish(shape.gemm_m, shape.c, dtype, arch, types)


def _gram_products(convolution: Convolution, arch: int, dtype: str, norm) -> Iterator[LaunchPlan]:
    """Both products of the gradient of a convolution whose output was never stored."""
    shape, absent = convolution.shape, ("z_ptr", *_BN_BACKWARD)
    masked, vectors = ("g_ptr", "out_ptr"), ("center_ptr", "total_ptr", *norm[0])
    if shape.k <= ONE_READ_FILTERS:
        maps, absent = (*masked, "x_ptr", "w_ptr", "y_ptr"), (*absent, "skip_ptr", "skip_out_ptr", *norm[1])
        types = _types(dtype, maps, (*vectors, "slices_ptr"), absent)
        yield split_planning.plan_one_read(shape, dtype, arch, types)[0]
        return
    types = _types(dtype, (*masked, "x_ptr"), (*vectors, "y_ptr"), (*absent, *norm[1]))
    yield split_planning.plan_conv_wgrad(shape, dtype, arch, types)[0]
    types = _types(dtype, (*masked, "w_ptr", "y_ptr"), (), (*absent, *_EPILOGUE))
    yield planning.plan_conv_dgrad(planning.output_of(shape), dtype, arch, types)


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
