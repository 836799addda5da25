"""The Triton training ops against the reference in float64, with canaries around every buffer.

On a machine without a GPU they run in Triton's interpreter (float32 and float16), one program after the other.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import Tensor

import fused_resnet
from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.errors import BackendError
from fused_resnet.ops import training
from fused_resnet.shapes import ConvShape
from tests.support.guarded import MARGIN, SENTINEL, GuardedOutput, amid_nans
from tests.support.parity import assert_parity
from tests.support.training_arguments import comparable
from tests.support.training_cases import CASES, OFFSET_CASES, TrainingCase, layout_cases, with_dtype
from tests.support.training_composed import judge

pytest.importorskip("triton", reason="triton is not installed")
launch = pytest.importorskip("fused_resnet.backends.triton.launch")
kernels_of = pytest.importorskip("fused_resnet.backends.triton.training.launch")
gram_kernels = pytest.importorskip("fused_resnet.backends.triton.training.gram")
one_read = pytest.importorskip("fused_resnet.backends.triton.training.one_read")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def is_taken(case: TrainingCase) -> bool:
    return case.op != "conv_stats" or (case.shape.groups == 1 and case.shape.dilation == (1, 1))


SINGLE = [case for case in (*CASES, *OFFSET_CASES) if is_taken(case)]
HALF = with_dtype(torch.float16)
LAYOUTS = [*layout_cases("nchw"), *layout_cases("misaligned")]
# more than one tile of pixels, of channels, and of each split; channels that divide no tile
LARGE = ConvShape(2, 72, 13, 12, 136, 3, 3, (2, 2), (1, 1))
LARGE_ONE = ConvShape(2, 136, 13, 12, 144, 1, 1)
# where one tile shows it: channels that divide none
SMALL = ConvShape(2, 24, 7, 6, 40, 3, 3, (2, 2), (1, 1))
SMALL_ONE = ConvShape(2, 24, 7, 6, 40, 1, 1)
# more filters than one tile holds
MANY_FILTERS = ConvShape(2, 24, 9, 10, 264, 1, 1, (2, 2))
TILED = [
    TrainingCase("conv_stats", LARGE, ("prologue",)),
    TrainingCase("conv_dgrad", LARGE, ("below", "skip_out")),
    TrainingCase("conv_dgrad", LARGE, ("block_sums", "skip_out", "skip_2")),
    TrainingCase("conv_dgrad", LARGE_ONE, ("block", "skip", "skip_2")),
    TrainingCase("conv1x1_backward", LARGE_ONE, ("rectified", "skip_out", "skip_2")),
    TrainingCase("conv1x1_backward", LARGE_ONE, ("rectified", "skip_out"), torch.float16),
    TrainingCase("gram_products", LARGE_ONE, ("prologue", "out"), torch.float16),
    TrainingCase("gram_products", MANY_FILTERS, ("out",)),
    TrainingCase("conv_wgrad", LARGE, ("prologue",)),
    TrainingCase("conv1x1_bn_add_act", LARGE_ONE, ("prologue", "residual")),
    TrainingCase("gram", LARGE_ONE, ("prologue",)),
    TrainingCase("gram_products", LARGE_ONE, ("prologue", "out")),
    TrainingCase("gram_backward_finish", LARGE_ONE, ("prologue",)),
    TrainingCase("bn_act_backward", LARGE_ONE, ("out",)),
]
# few channels, as a stem has: products are gathered one by one
GATHERED = ConvShape(1, 3, 17, 15, 20, 5, 3, (2, 1), (2, 0))


class GuardedPartials:
    """A buffer with sentinels on both sides, NaN inside where a kernel has to write."""

    def __init__(self, like: Tensor, *size: int, dtype: torch.dtype = torch.float32) -> None:
        count = torch.Size(size).numel()
        self.storage = torch.full((count + 2 * MARGIN,), SENTINEL, dtype=dtype, device=like.device)
        self.inside = slice(MARGIN, MARGIN + count)
        self.storage[self.inside] = torch.nan
        self.tensor = self.storage[self.inside].view(size)

    def check(self) -> None:
        self.storage[self.inside] = SENTINEL
        assert (self.storage == SENTINEL).all(), "stored outside of the partials"


@pytest.fixture(autouse=True)
def guards(monkeypatch):
    """Every map and every row of partials that the ops allocate is guarded, and checked at the end."""
    made = []

    def output(like: Tensor, size, out: Tensor | None) -> Tensor:
        if like.dtype == torch.uint8:  # no NaN to fill it with
            return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
        made.append(GuardedOutput(tuple(size), like.dtype, like.device))
        return made[-1].tensor

    def partials(like: Tensor, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        made.append(GuardedPartials(like, *size, dtype=dtype))
        return made[-1].tensor

    monkeypatch.setattr(launch, "_output", output)
    for module in (kernels_of, gram_kernels, one_read):
        monkeypatch.setattr(module, "_partials", partials)
    yield
    for guard in made:
        guard.check()


def amid(value):
    """The argument with NaN around it, where the op reads it where it lies."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.data_ptr() % 16:
        return value
    dense = value.dim() < 4 or value.is_contiguous(memory_format=torch.channels_last)
    return amid_nans(value) if dense else value


def ours(op: str):
    function = getattr(backend, op)
    return comparable(op, lambda **arguments: function(**{name: amid(value) for name, value in arguments.items()}))


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


@each([*SINGLE, *HALF, *LAYOUTS, *TILED])
def test_equals_the_reference(case):
    assert_parity(ours(case.op), judge(case.op), case, device=DEVICE)


@pytest.mark.parametrize("op", ["conv_stats", "conv_dgrad", "conv_wgrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_stem_of_any_window(op, dtype):
    case = TrainingCase(op, GATHERED, ("prologue",), dtype)
    assert_parity(ours(op), judge(op), case, device=DEVICE)


@each([next(case for case in CASES if case.op == op) for op in training.OPS])
def test_dispatch_finds_every_op_and_inputs_stay_as_they_were(case):
    arguments = case.inputs(DEVICE)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    with torch.no_grad(), fused_resnet.use_backend("triton"):
        first = getattr(training, case.op)(**arguments)
        again = getattr(training, case.op)(**arguments)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
    pairs = zip(first, again, strict=True) if isinstance(first, tuple) else [(first, again)]
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("shape", [dataclasses.replace(LARGE, groups=8), dataclasses.replace(LARGE, dilation=(2, 2))])
def test_grouped_and_dilated_convolutions_are_refused_by_name(shape):
    case = TrainingCase("conv_stats", shape)
    with fused_resnet.use_backend("triton"), pytest.raises(BackendError, match="ungrouped, undilated"):
        training.conv_stats(**case.inputs(DEVICE))


def test_partials_are_those_of_128_pixels():
    case = TrainingCase("conv_stats", LARGE_ONE)
    z, partials = backend.conv_stats(**case.inputs(DEVICE))
    torch.testing.assert_close(partials, reference.channel_stats(z))
    torch.testing.assert_close(backend.channel_stats(z), reference.channel_stats(z))


def test_pooling_chooses_as_torch_does():
    z = torch.randn(2, 20, 9, 7, device=DEVICE)
    z[0, 0], z[0, 1, 2:5, 3], z[1, 2, 4, 4] = 1.0, torch.nan, torch.inf
    z = z.contiguous(memory_format=torch.channels_last)
    vectors = (torch.ones(20, device=DEVICE), torch.zeros(20, device=DEVICE))
    for window in ((3, 2, 1), (2, 2, 0), (3, 1, 1)):
        y, argmax = backend.bn_relu_maxpool(z, *vectors, *window)
        expected = reference.bn_relu_maxpool(z, *vectors, *window)
        torch.testing.assert_close(y, expected[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(argmax, expected[1])


MAPS = ("x", "z", "g", "grad", "t", "skip", "residual", "below_z")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@each(
    [
        TrainingCase("conv_stats", SMALL, ("prologue",)),
        TrainingCase("conv1x1_bn_add_act", SMALL_ONE, ("prologue", "residual")),
        TrainingCase("bn_add_act", SMALL_ONE, ("residual",)),
        TrainingCase("conv_dgrad", SMALL, ("below", "skip_out")),
        TrainingCase("conv_wgrad", SMALL, ("prologue",)),
        TrainingCase("conv1x1_backward", SMALL_ONE, ("rectified", "skip_out")),
        TrainingCase("gram_products", SMALL_ONE, ("prologue", "out")),
        TrainingCase("gram_backward_finish", SMALL_ONE, ("prologue",)),
        TrainingCase("bn_act_backward", SMALL_ONE, ("out",)),
    ]
)
def test_nan_comes_out_where_the_reference_has_it(case):
    arguments = case.inputs(DEVICE)
    for name in MAPS:
        if isinstance(arguments.get(name), Tensor):
            arguments[name][1, 2, 1, 2] = torch.nan
    got = getattr(backend, case.op)(**arguments)
    expected = getattr(reference, case.op)(**arguments)
    got, expected = ((value if isinstance(value, tuple) else (value,)) for value in (got, expected))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert any(other.isnan().any() for other in expected)


MASKS = ("out", "skip_out", "below_out")


@each(
    [
        TrainingCase("conv_dgrad", SMALL, ("block_sums",)),
        TrainingCase("conv_dgrad", SMALL_ONE, ("skip_out",)),
        TrainingCase("conv1x1_backward", SMALL_ONE, ("rectified", "skip_out")),
        TrainingCase("gram_products", SMALL_ONE, ("out",)),
    ]
)
def test_a_nan_in_a_mask_lets_the_gradient_pass(case):
    arguments = case.inputs(DEVICE)
    for name in MASKS:
        if isinstance(arguments.get(name), Tensor):
            arguments[name].fill_(torch.nan)
    passing = {name: None if name in MASKS else value for name, value in arguments.items()}
    got, expected = (getattr(backend, case.op)(**given) for given in (arguments, passing))
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other) and other.isfinite().all()


def test_an_input_of_nan_lets_its_gradient_pass():
    case = TrainingCase("conv1x1_backward", SMALL_ONE, ("rectified",))
    arguments = case.inputs(DEVICE)
    unmasked, _ = backend.conv1x1_backward(**arguments | {"rectified": False})
    arguments["x"][0, 3] = torch.nan
    dx, products = backend.conv1x1_backward(**arguments)
    assert torch.equal(dx[0, 3], unmasked[0, 3]) and products[:, 3].isnan().all()
    assert products.isnan().sum() == SMALL_ONE.k


@pytest.mark.parametrize(("filters", "launches"), [(256, ["conv_backward_1x1"]), (257, ["conv_wgrad", "conv_dgrad"])])
def test_gram_products_read_the_gradient_once_where_a_tile_holds_all_filters(filters, launches, monkeypatch):
    run, launched = launch.run, []
    monkeypatch.setattr(launch, "run", lambda plan, tensors: [launched.append(plan.kernel), run(plan, tensors)])
    case = TrainingCase("gram_products", ConvShape(1, 16, 5, 4, filters, 1, 1), ("out",))
    assert_parity(backend.gram_products, judge("gram_products"), case, device=DEVICE)
    assert launched == launches


def test_the_op_and_the_kernel_agree_on_how_many_filters_one_read_takes():
    assert one_read.ONE_READ_FILTERS == training.ONE_READ_FILTERS


@pytest.mark.parametrize("op", training.OPS)
def test_the_backend_has_the_signature_of_the_op(op):
    names = [(p.name, p.default) for p in inspect.signature(getattr(training, op)).parameters.values()]
    assert names == [(p.name, p.default) for p in inspect.signature(getattr(backend, op)).parameters.values()]
