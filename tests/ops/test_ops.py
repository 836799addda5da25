"""The raw ops: parity through every CPU backend, torch.library's own checks, layouts, empty batches, NaN, autocast."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fused_resnet
from fused_resnet import ops
from fused_resnet._torchvision import import_torchvision
from fused_resnet.backends import reference
from fused_resnet.ops.dispatch import recording
from tests.support.cases import CONV_CASES, OPTION_A_CASES, POOL_CASES, STEM_CASES, with_dtype
from tests.support.drawing import LAYOUTS
from tests.support.parity import assert_parity, model_row

BACKENDS = ("onednn", "reference")
ALL_CASES = [
    *(("conv_scale_shift_act", case) for case in CONV_CASES),
    *(("conv_bn_relu_maxpool", case) for case in STEM_CASES),
    *(("global_avg_pool", case) for case in POOL_CASES),
    *(("option_a_shortcut", case) for case in OPTION_A_CASES),
]
CONV_DEFAULTS = {
    **dict.fromkeys(("bn_weight", "bn_bias", "running_mean", "running_var")),
    "eps": 0.0,
    "residual": None,
    "stride": (1, 1),
    "padding": (0, 0),
    "dilation": (1, 1),
    "groups": 1,
    "residual_stride": 1,
    "act": "relu",
}
STEM_DEFAULTS = {
    **dict.fromkeys(("bn_weight", "bn_bias", "running_mean", "running_var")),
    "eps": 0.0,
    "stride": (2, 2),
    "padding": (3, 3),
    "pool_kernel": 3,
    "pool_stride": 2,
    "pool_padding": 1,
}
DEFAULTS = {"conv_scale_shift_act": CONV_DEFAULTS, "conv_bn_relu_maxpool": STEM_DEFAULTS}
MAP = (2, 16, 9, 11)


def each(cases):
    return pytest.mark.parametrize(("op", "case"), cases, ids=[case.id for _, case in cases])


def conv_arguments(x: torch.Tensor, **changes) -> dict:
    """A live 3x3 conv + BN + residual of x, 24 filters."""
    draw = torch.Generator().manual_seed(7)
    rand = lambda *size: torch.randn(size, generator=draw)  # noqa: E731
    n, c, h, w = x.shape
    arguments = {
        "x": x,
        "weight": rand(24, c, 3, 3) / (9 * c) ** 0.5,
        "bn_weight": 0.5 + rand(24).abs(),
        "bn_bias": rand(24),
        "running_mean": rand(24),
        "running_var": 0.5 + rand(24).abs(),
        "eps": 1e-5,
        "residual": rand(n, 24, h, w),
        "padding": (1, 1),
    }
    return arguments | changes


def test_case_ids_are_unique():
    ids = [case.id for _, case in ALL_CASES]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("backend", BACKENDS)
@each(ALL_CASES)
def test_parity(op, case, backend):
    assert_parity(getattr(ops, op), getattr(reference, op), case, backend=backend)


@each(
    [
        ("conv_scale_shift_act", case)
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
        for case in with_dtype(CONV_CASES[:12:2], dtype) + with_dtype(CONV_CASES[1:2], dtype, vectors=dtype)
    ]
)
def test_parity_of_other_dtypes(op, case):
    assert_parity(getattr(ops, op), getattr(reference, op), case)


@each(ALL_CASES)
def test_opcheck(op, case):
    arguments = DEFAULTS.get(op, {}) | case.inputs()
    leading = [arguments.pop(name) for name in ("x", "weight") if name in arguments]
    order = [argument.name for argument in getattr(torch.ops.fused_resnet, op).default._schema.arguments]
    values = (*leading, *(arguments[name] for name in order[len(leading) :]))
    torch.library.opcheck(getattr(torch.ops.fused_resnet, op).default, values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_what_aten_gives(layout, backend):
    x = LAYOUTS[layout](torch.randn(MAP))
    conv, norm = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24).eval()
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    kept = x.clone(), x.stride()
    with torch.no_grad(), fused_resnet.use_backend(backend):
        vectors = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
        y = ops.conv_scale_shift_act(x, conv.weight, *vectors, padding=(1, 1))
        expected = torch.relu(norm(conv(x)))
    torch.testing.assert_close(y, expected)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert torch.equal(x, kept[0]) and x.stride() == kept[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("filters", "extent"), [(24, 1), (1, 3)], ids=["one pixel", "one filter"])
def test_adds_to_maps_that_are_nchw_and_nhwc_at_once(filters, extent, backend):
    """torch 2.11's own fused addition fails there, where x says channels_last in its strides."""
    pixels = extent * extent
    x = torch.randn(2, pixels, 16).as_strided((2, 16, extent, extent), (pixels * 16, 1, extent * 16, 16))
    weight, residual = torch.randn(filters, 16, 1, 1), torch.randn(2, filters, extent, extent)
    with fused_resnet.use_backend(backend):
        y = ops.conv_scale_shift_act(x, weight, residual=residual)
    torch.testing.assert_close(y, torch.relu(F.conv2d(x, weight) + residual))


EMPTY = (
    ("conv_scale_shift_act", dataclasses.replace(CONV_CASES[1], shape=dataclasses.replace(CONV_CASES[1].shape, n=0))),
    ("conv_bn_relu_maxpool", dataclasses.replace(STEM_CASES[1], n=0)),
    ("global_avg_pool", dataclasses.replace(POOL_CASES[0], n=0)),
    ("option_a_shortcut", dataclasses.replace(OPTION_A_CASES[0], n=0)),
)


@each(EMPTY)
def test_empty_batch(op, case):
    y = getattr(ops, op)(**case.inputs())
    expected = getattr(reference, op)(**case.inputs())
    assert y.shape == expected.shape and y.shape[0] == 0 and y.dtype == expected.dtype


def test_inputs_are_left_alone():
    arguments = conv_arguments(torch.randn(MAP))
    kept = {name: value.clone() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    for backend in BACKENDS:
        with fused_resnet.use_backend(backend):
            y = ops.conv_scale_shift_act(**arguments, act="identity")
        tensors = {name: arguments[name] for name in kept}
        assert all(torch.equal(tensors[name], kept[name]) for name in kept)
        assert all(y.data_ptr() != tensor.data_ptr() for tensor in tensors.values())


@pytest.mark.parametrize("op", ["option_a_shortcut", "global_avg_pool"])
def test_the_identity_case_is_a_fresh_tensor(op):
    x = torch.randn(2, 8, 1, 1)
    y = ops.option_a_shortcut(x, 8, 1) if op == "option_a_shortcut" else ops.global_avg_pool(x)
    assert torch.equal(y, x) and y.data_ptr() != x.data_ptr()


NON_FINITE = {
    "nan in x": ("x", (0, 3, 4, 5), torch.nan),
    "inf in x": ("x", (1, 0, 0, 0), torch.inf),
    "-inf in x": ("x", (1, 15, 8, 10), -torch.inf),
    "nan in residual": ("residual", (0, 5, 2, 2), torch.nan),
    "inf in residual": ("residual", (0, 5, 2, 2), torch.inf),
    "-inf in residual": ("residual", (0, 5, 2, 2), -torch.inf),
    "nan in weight": ("weight", (3, 1, 1, 1), torch.nan),
    "inf in weight": ("weight", (3, 1, 0, 2), torch.inf),
    "nan in running_var": ("running_var", (7,), torch.nan),
    "inf in running_var": ("running_var", (7,), torch.inf),
    "negative running_var": ("running_var", (7,), -1.0),
    "nan in bn_bias": ("bn_bias", (7,), torch.nan),
    "inf in running_mean": ("running_mean", (7,), torch.inf),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", NON_FINITE)
def test_nan_and_inf_come_out_where_aten_has_them(where, backend):
    name, index, value = NON_FINITE[where]
    arguments = conv_arguments(torch.randn(MAP))
    arguments[name][index] = value
    for act in ("relu", "identity"):
        with fused_resnet.use_backend(backend):
            y = ops.conv_scale_shift_act(**arguments, act=act)
        torch.testing.assert_close(y, reference.conv_scale_shift_act(**arguments, act=act), equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_inf_through_the_stem_and_the_pool(backend, value):
    arguments = STEM_CASES[0].inputs()
    arguments["x"][0, 1, 16, 16] = value
    with fused_resnet.use_backend(backend):
        y = ops.conv_bn_relu_maxpool(**arguments)
        pooled = ops.global_avg_pool(y)
    expected = reference.conv_bn_relu_maxpool(**arguments)
    torch.testing.assert_close(y, expected, equal_nan=True)
    torch.testing.assert_close(pooled, expected.mean((2, 3), keepdim=True), equal_nan=True)
    assert not y[0].isfinite().all() and y[1].isfinite().all()


def test_half_precision_accumulates_in_float32():
    x = torch.full((1, 8, 64, 64), 100.0, dtype=torch.float16)
    assert ops.global_avg_pool(x).eq(100).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_a_block_the_dtypes_that_torchvision_has(dtype):
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("compares with torchvision, which is not installed")
    block = fused_resnet.BasicBlock(16, 16).eval()
    theirs = torchvision.models.resnet.BasicBlock(16, 16).eval()
    theirs.load_state_dict(block.state_dict())
    x = torch.randn(MAP)
    with torch.no_grad(), recording() as decisions, torch.autocast("cpu", dtype=dtype):
        y, expected = block(x), theirs(x)
    assert y.dtype == expected.dtype
    assert [decision.unfused_reason for decision in decisions if decision.module is block] == [None]
    row = model_row(y, theirs, x, dtype)
    assert row.passed, row


def test_raw_ops_keep_their_dtype_under_autocast():
    case = CONV_CASES[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.conv_scale_shift_act(**case.inputs())
    torch.testing.assert_close(y, reference.conv_scale_shift_act(**case.inputs()))


def test_a_gradient_is_refused_with_the_way_out():
    x = torch.randn(MAP, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"without a backward.*no_grad"):
        ops.conv_scale_shift_act(x, torch.randn(4, 16, 1, 1))
