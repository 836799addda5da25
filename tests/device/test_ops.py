"""The ops on a GPU: bfloat16 and tf32, which no interpreter shows, streams, and small shapes for the sanitizer.

`test_triton_*.py` run on a device as they stand, in float32 and float16; the CUDA backend's own cases are those of
`test_cuda.py`; whole models are in `test_models.py`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fused_resnet import BackendError, ops, use_backend
from fused_resnet.backends import reference, unavailable_reason
from fused_resnet.ops import training
from fused_resnet.shapes import ConvShape
from tests.support.cases import CONV_CASES, OPTION_A_CASES, POOL_CASES, STEM_CASES, ConvCase
from tests.support.parity import Case, assert_parity, describe, doubled, judged
from tests.support.training_arguments import comparable
from tests.support.training_cases import CASES, OFFSET_CASES, TrainingCase, with_dtype
from tests.support.training_composed import judge

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
DTYPES = {"bfloat16": BF16, "float16": torch.float16, "float32": torch.float32}
TF32_DROPPED = 13  # mantissa bits of a float32 that the matrix units do not read
TF32_ROUNDING = 2.0**-10

INFERENCE = [
    *(("conv_scale_shift_act", case) for case in CONV_CASES),
    *(("conv_bn_relu_maxpool", case) for case in STEM_CASES),
    *(("global_avg_pool", case) for case in POOL_CASES),
    *(("option_a_shortcut", case) for case in OPTION_A_CASES),
]
TRAINING = [(case.op, case) for case in (*CASES, *OFFSET_CASES)]
FEW = [(case.op, case) for case in with_dtype(torch.float16)]
# What multiplies: these read their inputs as tf32 where that is allowed.
INFERENCE_PRODUCTS = ("conv_scale_shift_act", "conv_bn_relu_maxpool")
TRAINING_PRODUCTS = ("conv_stats", "conv1x1_bn_add_act", "conv_dgrad", "conv_wgrad", "conv1x1_backward")
PRODUCTS = [(op, case) for op, case in INFERENCE if op in INFERENCE_PRODUCTS and case.layout == "channels_last"]
PRODUCTS += [(op, dataclasses.replace(case, dtype=torch.float32)) for op, case in FEW if op in TRAINING_PRODUCTS]


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 means float32, for ours and for cuDNN; the tests of tf32 ask for it."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def require(backend: str) -> None:
    reason = unavailable_reason(backend)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def each(cases):
    return pytest.mark.parametrize(("op", "case"), cases, ids=[f"{op}-{case.id}" for op, case in cases])


def in_dtype(cases, dtype: torch.dtype):
    return [(op, dataclasses.replace(case, dtype=dtype)) for op, case in cases]


def refusal(backend: str, op: str, case: Case) -> str | None:
    """The backend's reason not to take the case; a missing op is one, any other failure is not."""
    module = ops if hasattr(ops, op) else training
    try:
        with torch.no_grad(), use_backend(backend):
            getattr(module, op)(**case.inputs(DEVICE))
    except BackendError as error:
        return str(error)
    return None


def functions(op: str):
    """The op as registered, and its reference; training ops in a form that backends compare by."""
    if hasattr(ops, op):
        return getattr(ops, op), getattr(reference, op)
    return comparable(op, getattr(training, op)), judge(op)


def assert_on_device(op: str, case: Case) -> None:
    """Parity through Triton, which may refuse only what it says it refuses: grouped and dilated statistics."""
    require("triton")
    reason = refusal("triton", op, case)
    if reason is not None:
        grouped = case.shape.groups != 1 or case.shape.dilation != (1, 1)
        assert op == "conv_stats" and grouped, f"{case.id} is refused: {reason}"
        pytest.skip(reason)
    assert_parity(*functions(op), case, backend="triton", device=DEVICE)


# ---- every op, in every precision ----


@each([case for dtype in DTYPES.values() for case in in_dtype(INFERENCE, dtype)])
def test_inference_op(op, case):
    assert_on_device(op, case)


@each([*in_dtype(TRAINING, BF16), *FEW])
def test_training_op(op, case):
    assert_on_device(op, case)


def as_tf32_reads(value):
    """A float32 map or filter with the bits cleared that the matrix units do not read; vectors stay."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.dim() < 2:
        return value
    kept = value.clone().view(torch.int32)
    return (kept >> TF32_DROPPED << TF32_DROPPED).view(torch.float32)


@each(PRODUCTS)
def test_tf32(op, case):
    """Held to what tf32 itself costs: the reference in float64 on inputs as the matrix units read them.

    cuDNN answers small convolutions in float32 although tf32 is allowed, and is then no measure.
    """
    require("triton")
    torch.backends.cudnn.allow_tf32 = True
    reason = refusal("triton", op, case)
    if reason is not None:
        pytest.skip(reason)
    ours, plain = functions(op)
    with torch.no_grad():
        with use_backend("triton"):
            got = ours(**case.inputs(DEVICE))
        exact = {name: doubled(value) for name, value in case.inputs(DEVICE).items()}
        read = {name: doubled(as_tf32_reads(value)) for name, value in case.inputs(DEVICE).items()}
        gold, baseline = plain(**exact), plain(**read)
    for name, one, other, truth in zip(case.outputs, *map(_tuple, (got, baseline, gold)), strict=True):
        unit = truth.double().square().mean().sqrt().clamp_min(1e-30)
        error, allowed = ((value.double() - truth).square().mean().sqrt() / unit for value in (one, other))
        assert error <= 2 * allowed + TF32_ROUNDING, f"{name}: error {error:.3g}, of tf32 itself {allowed:.3g}"


def _tuple(result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


# ---- small shapes, once each, for compute-sanitizer: few launches, and none but ours ----

SIXTY_FOUR = ConvShape(2, 64, 9, 10, 64, 3, 3, (1, 1), (1, 1))
FEW_PIXELS = ConvShape(1, 128, 5, 6, 128, 3, 3, (1, 1), (1, 1))  # whose tiles blocks share
STRIDED = ConvShape(1, 64, 9, 10, 64, 3, 3, (2, 2), (1, 1))
POINTWISE = ConvShape(1, 64, 9, 10, 72, 1, 1)
FEW_FILTERS = ConvShape(1, 136, 9, 10, 64, 1, 1)  # whose products a block holds
MANY_FILTERS = ConvShape(1, 64, 9, 10, 520, 1, 1)  # whose products a cluster of blocks holds
POOLED = ConvShape(1, 64, 9, 10, 64, 3, 3, (2, 2), (1, 1))
SMALL = [
    ("conv_scale_shift_act", ConvCase(SIXTY_FOUR, residual="same", dtype=BF16)),
    ("conv_scale_shift_act", ConvCase(FEW_PIXELS, residual="same", dtype=BF16)),
    ("conv_scale_shift_act", ConvCase(STRIDED, dtype=BF16)),
    ("conv_scale_shift_act", ConvCase(POINTWISE, dtype=torch.float16)),
    ("global_avg_pool", dataclasses.replace(POOL_CASES[0], dtype=BF16)),
    *((op, TrainingCase(op, shape, with_, BF16)) for op, shape, with_ in (
        ("conv_stats", SIXTY_FOUR, ("prologue",)),
        ("conv_stats", POINTWISE, ()),
        ("channel_stats", SIXTY_FOUR, ()),
        ("bn_finalize", SIXTY_FOUR, ()),
        ("gram", POINTWISE, ("prologue",)),
        ("conv1x1_bn_add_act", POINTWISE, ("prologue", "residual")),
        ("bn_add_act", SIXTY_FOUR, ("residual",)),
        ("conv_dgrad", STRIDED, ("below",)),
        ("conv_wgrad", SIXTY_FOUR, ("prologue",)),
        ("conv1x1_backward", POINTWISE, ("rectified", "skip")),
        ("conv1x1_backward", FEW_FILTERS, ("rectified", "skip_out")),
        ("gram_products", POINTWISE, ("prologue", "out")),
        ("gram_products", MANY_FILTERS, ("prologue", "out")),
        ("gram_backward_finish", POINTWISE, ("prologue",)),
        ("bn_act_backward", SIXTY_FOUR, ("out",)),
        ("bn_backward_apply", SIXTY_FOUR, ()),
        ("bn_relu_maxpool", POOLED, ()),
        ("bn_relu_maxpool_backward", POOLED, ()),
    )),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@each(SMALL)
def test_small_shapes(op, case, backend):
    require(backend)
    reason = refusal(backend, op, case)
    if reason is not None:
        pytest.skip(reason)
    ours, plain = functions(op)
    with torch.no_grad():
        # The reference runs on the CPU, so that the sanitizer has only our kernels to watch.
        with use_backend(backend):
            got = [one.cpu() for one in _tuple(ours(**_moved(case.inputs(), DEVICE)))]
    for row, one, gold in judged(tuple(got), plain, case):
        assert row.passed, describe(case, backend, row, one, gold)


def _moved(arguments: dict, device: torch.device) -> dict:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


# ---- streams ----


def _streamed(op: str, case: Case, backend: str, stream: torch.cuda.Stream) -> list[Tensor]:
    """The op's outputs where its inputs are made late on `stream`: wrong if it ran on another stream."""
    module = ops if hasattr(ops, op) else training
    ready = case.inputs(DEVICE)
    late = {name: torch.full_like(v, float("nan")) if _is_map(v) else v for name, v in ready.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.no_grad(), use_backend(backend):
        torch.cuda._sleep(50_000_000)  # some 30 ms in which work on another stream would overtake
        for name, value in ready.items():
            if _is_map(value):
                late[name].copy_(value)
        return list(_tuple(getattr(module, op)(**late)))


def _is_map(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 4


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@each([case for case in SMALL if case[0] != "bn_finalize"])
def test_runs_on_the_current_stream(op, case, backend):
    require(backend)
    reason = refusal(backend, op, case)
    if reason is not None:
        pytest.skip(reason)
    module = ops if hasattr(ops, op) else training
    with torch.no_grad(), use_backend(backend):
        expected = _tuple(getattr(module, op)(**case.inputs(DEVICE)))
    stream = torch.cuda.Stream()
    got = _streamed(op, case, backend, stream)
    stream.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_streams_side_by_side_do_not_meet(backend):
    require(backend)
    cases = [ConvCase(SIXTY_FOUR, residual="same", dtype=BF16), ConvCase(STRIDED, dtype=BF16)]
    inputs = [case.inputs(DEVICE) for case in cases for _ in range(2)]
    with torch.no_grad(), use_backend(backend):
        expected = [ops.conv_scale_shift_act(**one) for one in inputs]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in inputs]
        found = []
        for _ in range(20):
            for stream, one in zip(streams, inputs, strict=True):
                with torch.cuda.stream(stream):
                    found.append(ops.conv_scale_shift_act(**one))
        torch.cuda.synchronize()
    for index, y in enumerate(found):
        assert torch.equal(y, expected[index % len(inputs)])
