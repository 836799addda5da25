"""The CUDA kernels that are no convolutions, emulated on the CPU from their own source, against float64.

With canaries around every buffer.  The same cases run on a device, where there is one, in `tests/device/test_cuda.py`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fused_resnet.backends import cuda as backend
from fused_resnet.backends import reference
from fused_resnet.backends.cuda import passes as kernels_of
from fused_resnet.shapes import ConvShape
from tests.support.emulated import needs_compiler
from tests.support.emulated_extension import EmulatedExtension, install
from tests.support.guarded import amid_nans
from tests.support.parity import assert_parity
from tests.support.training_arguments import comparable
from tests.support.training_cases import TrainingCase
from tests.support.training_composed import judge

pytestmark = needs_compiler
HALF = (torch.bfloat16, torch.float16)


def _output(n: int, h: int, w: int, k: int) -> ConvShape:
    """A convolution whose output is (n, k, h, w)."""
    return ConvShape(n, k, h, w, k, 1, 1)


def _pool(n: int, h: int, w: int, k: int, kernel: int, stride: int, padding: int) -> ConvShape:
    return ConvShape(n, k, h, w, k, kernel, kernel, (stride, stride), (padding, padding))


ODD = _output(2, 9, 11, 24)  # three chunks of channels in a block of four columns
NARROW = _output(3, 21, 19, 8)  # more pixels than a block takes, one chunk
WIDE = _output(1, 3, 5, 264)  # more channels than a block takes
DOT = _output(1, 1, 1, 8)
STRIDED = ConvShape(2, 16, 9, 12, 32, 3, 3, (2, 2), (1, 1))

CASES = [
    TrainingCase(op, shape, *rest)
    for op, *calls in (
        (
            "bn_add_act",
            (ODD, ("residual",)),
            (ODD, ("residual", "identity")),
            (NARROW, ()),
            (WIDE, ("residual",)),
            (STRIDED, ("option_a",)),
            (DOT, ("identity",)),
        ),
        ("bn_act_backward", (ODD, ("out",)), (NARROW, ("out",)), (WIDE, ()), (DOT, ("out",))),
        ("bn_backward_apply", (ODD, ()), (NARROW, ("constant",)), (WIDE, ())),
        ("channel_stats", (ODD,), (NARROW,), (WIDE,), (DOT,)),
        (
            "bn_relu_maxpool",
            (_pool(2, 13, 11, 24, 3, 2, 1),),
            (_pool(1, 8, 10, 264, 2, 2, 0),),
            (_pool(2, 7, 9, 8, 5, 3, 2),),
            (_pool(1, 37, 35, 8, 3, 1, 1),),
        ),
        (
            "bn_relu_maxpool_backward",
            (_pool(2, 13, 11, 24, 3, 2, 1),),
            (_pool(1, 8, 10, 264, 2, 2, 0),),
            (_pool(2, 7, 9, 8, 5, 3, 2),),
            (_pool(1, 17, 15, 8, 3, 1, 1),),
        ),
    )
    for shape, *rest in calls
]
FINALIZE = [
    TrainingCase("bn_finalize", ODD),
    TrainingCase("bn_finalize", NARROW, ("bare",)),
    TrainingCase("bn_finalize", WIDE, ("empty",), offset=30.0),
    TrainingCase("bn_finalize", _output(40, 32, 32, 16), ("empty",)),
    TrainingCase("bn_finalize", _output(41, 32, 32, 40), offset=30.0),  # 328 rows, which 64 runs do not divide
]
HALVES = [dataclasses.replace(case, dtype=dtype) for case in CASES for dtype in HALF]
ALL = [*HALVES, *FINALIZE]


@pytest.fixture(autouse=True)
def guards(monkeypatch):
    installed = install(monkeypatch, EmulatedExtension(seed=1))
    yield installed
    installed.check()


def amid(value):
    """The argument with NaN around it."""
    return amid_nans(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def ours(op: str):
    function = getattr(backend, op)
    return comparable(op, lambda **arguments: function(**{name: amid(value) for name, value in arguments.items()}))


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


@each(ALL)
def test_equals_the_reference(case):
    assert_parity(ours(case.op), judge(case.op), case)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", [(2, 24, 7, 7), (3, 264, 1, 1), (1, 8, 23, 25)], ids=str)
def test_the_mean_of_an_image_is_rounded_once(dtype, size):
    x = torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = x.double().mean((2, 3), keepdim=True)
    torch.testing.assert_close(
        backend.global_avg_pool(amid(x)).double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-7
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_every_number_goes_through_as_it_is(dtype):
    """All 65,536 bit patterns, times one plus nothing."""
    z = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 256, 256, 1).permute(0, 3, 1, 2)
    z = z.reshape(1, 256, 16, 16).contiguous(memory_format=torch.channels_last)
    y = backend.bn_add_act(z, torch.ones(256), torch.zeros(256), None, 1, "identity")
    assert torch.equal(y.isnan(), z.isnan())
    assert torch.equal(y[~y.isnan()], z[~z.isnan()])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_results_are_rounded_to_nearest_even(dtype):
    """Halfway between two numbers, and a hair to either side."""
    ulp = torch.finfo(dtype).eps
    z = (1 + ulp * torch.arange(64)).to(dtype).view(1, 8, 8, 1).repeat(1, 1, 1, 3).contiguous()
    z = z.contiguous(memory_format=torch.channels_last)
    for shift in (ulp / 2, ulp * 0.49, ulp * 0.51, -ulp / 2):
        y = backend.bn_add_act(z, torch.ones(8), torch.full((8,), shift), None, 1, "relu")
        assert torch.equal(y, (z.float() + shift).to(dtype))


MAPS = ("z", "g", "grad", "residual", "out")


@each([case for case in HALVES if case.shape in (ODD, STRIDED) and case.dtype == torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_come_out_where_the_reference_has_them(case, value):
    arguments = case.inputs()
    for name in MAPS:
        if isinstance(arguments.get(name), Tensor):
            arguments[name][1, 2, 1, 2] = value
            arguments[name][0, :8, 0, 0] = -value
    got = comparable(case.op, getattr(backend, case.op))(**arguments)
    expected = comparable(case.op, getattr(reference, case.op))(**arguments)
    for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (got, expected)), strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and torch.equal(one.isinf(), other.isinf())


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_shortcut_of_as_many_channels_is_subsampled(stride):
    z = torch.zeros(2, 24, 4, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, 24, 4 * stride, 3 * stride - stride + 1).bfloat16()
    y = backend.bn_add_act(z, torch.ones(24), torch.zeros(24), residual, stride, "identity")
    assert torch.equal(y, residual[:, :, ::stride, ::stride])


def test_what_a_mask_closes_is_dropped_and_a_nan_lets_pass():
    grad, z = torch.full((1, 8, 1, 2), torch.nan).bfloat16(), torch.ones(1, 8, 1, 2).bfloat16()
    out = torch.zeros(1, 8, 1, 2).bfloat16()
    out[..., 1] = torch.nan
    g, sum_g, _ = backend.bn_act_backward(grad, out, z, torch.zeros(8))
    assert (g[..., 0] == 0).all() and g[..., 1].isnan().all() and sum_g.isnan().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_pooling_chooses_as_torch_does(dtype):
    z = torch.randn(2, 24, 9, 7).round(decimals=1)
    z[0, 0], z[0, 1, 2:5, 3], z[1, 2, 4, 4], z[1, 3] = 1.0, torch.nan, torch.inf, -1.0
    z = z.to(dtype).contiguous(memory_format=torch.channels_last)
    plain = (torch.ones(24), torch.zeros(24))
    few = (torch.full((24,), 0.01), torch.ones(24))  # maps all to few numbers: ties that only rounding makes
    for window, vectors in (((3, 2, 1), plain), ((3, 2, 1), few), ((2, 2, 0), plain), ((4, 3, 2), plain)):
        y, argmax = backend.bn_relu_maxpool(z, *vectors, *window)
        expected = reference.bn_relu_maxpool(z, *vectors, *window)
        torch.testing.assert_close(y, expected[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(argmax, expected[1])


def test_pixels_that_no_window_covers_get_no_gradient():
    window, z = (2, 3, 0), torch.rand(1, 8, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    vectors = (torch.ones(8), torch.zeros(8))
    y, argmax = backend.bn_relu_maxpool(z, *vectors, *window)
    g, sum_g, _ = backend.bn_relu_maxpool_backward(torch.ones_like(y), argmax, z, *vectors, torch.zeros(8), *window)
    assert (g[:, :, 2::3] == 0).all() and (g[:, :, :, 2::3] == 0).all()
    assert (sum_g == y[0, 0].numel()).all()


@each([TrainingCase("channel_stats", NARROW, offset=300.0), TrainingCase("channel_stats", ODD, offset=300.0)])
def test_statistics_far_from_zero_do_not_cancel(case):
    z = dataclasses.replace(case, dtype=torch.bfloat16).inputs()["z"]
    mean, var, *_ = backend.bn_finalize(backend.channel_stats(z), None, None, 1e-5)
    exact = z.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-5, atol=0)
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_partials_are_those_of_128_pixels():
    z = TrainingCase("channel_stats", NARROW, dtype=torch.bfloat16).inputs()["z"]
    torch.testing.assert_close(backend.channel_stats(z), reference.channel_stats(z), rtol=1e-5, atol=1e-6)


def test_a_row_of_no_pixels_changes_nothing_whatever_it_holds():
    partials = TrainingCase("bn_finalize", ODD).inputs()["partials"]
    empty = torch.tensor([0.0, 1e30, torch.nan]).view(1, 3, 1).expand_as(partials[:1])
    for rows in ((empty, partials), (partials, empty), (partials[:1], empty, partials[1:])):
        got, expected = (backend.bn_finalize(one, None, None, 1e-5) for one in (torch.cat(rows), partials))
        torch.testing.assert_close(got, expected)


def test_nothing_at_all_has_mean_and_variance_zero():
    mean, var, invstd, scale, shift = backend.bn_finalize(torch.zeros(0, 3, 8), None, None, 1.0)
    assert (mean == 0).all() and (var == 0).all() and (invstd == 1).all() and (scale == 1).all() and (shift == 0).all()


REPEATED = [
    TrainingCase("bn_act_backward", NARROW, ("out",), torch.bfloat16),
    TrainingCase("bn_relu_maxpool_backward", _pool(2, 13, 11, 24, 3, 2, 1), (), torch.float16),
    TrainingCase("channel_stats", NARROW, (), torch.bfloat16),
    TrainingCase("bn_finalize", _output(40, 32, 32, 16)),
]


@each(REPEATED)
def test_a_call_repeats_bit_by_bit_whatever_runs_first(case, monkeypatch):
    first = getattr(backend, case.op)(**case.inputs())
    for seed, workers in ((0, 1), (7, 2)):
        install(monkeypatch, EmulatedExtension(seed, workers))
        again = getattr(backend, case.op)(**case.inputs())
        pairs = zip(first, again, strict=True) if isinstance(first, tuple) else [(first, again)]
        assert all(torch.equal(one, other) for one, other in pairs)


def test_long_maps_leave_few_rows_of_partial_sums(monkeypatch):
    """More runs than MAX_SUM_ROWS are not made: longer runs are, and their sums are those of all pixels."""
    monkeypatch.setattr(kernels_of, "MAX_SUM_ROWS", 3)
    case = TrainingCase("bn_act_backward", NARROW, ("out",), torch.bfloat16)
    assert_parity(ours(case.op), getattr(reference, case.op), case)
