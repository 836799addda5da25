"""The backend `cuda`: its signatures, its convolutions, and what its launchers refuse."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import Tensor

from fused_resnet import ops
from fused_resnet.backends import cuda as backend
from fused_resnet.backends import reference
from fused_resnet.backends.cuda import availability
from fused_resnet.errors import BackendError
from fused_resnet.ops import training
from fused_resnet.shapes import ConvShape
from tests.support.cases import ConvCase, StemCase
from tests.support.emulated import needs_compiler
from tests.support.emulated_extension import QUESTIONS, EmulatedExtension, install
from tests.support.parity import assert_parity
from tests.support.training_arguments import comparable
from tests.support.training_cases import TrainingCase
from tests.support.training_composed import judge

HALF = (torch.bfloat16, torch.float16)
MISALIGNED = torch.zeros(8 * 16 + 1, dtype=torch.bfloat16)[1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)


def nhwc(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(size, dtype=dtype).contiguous(memory_format=torch.channels_last)


def _three(n, h, w, c, stride, k=None) -> ConvShape:
    return ConvShape(n, c, h, w, k or c, 3, 3, (stride, stride), (1, 1))


def _stem(n, h, w) -> ConvShape:
    return ConvShape(n, 3, h, w, 64, 7, 7, (2, 2), (3, 3))


def _one(n, h, w, c, k, stride=1) -> ConvShape:
    return ConvShape(n, c, h, w, k, 1, 1, (stride, stride), (0, 0))


CONVOLUTIONS = [
    *(
        TrainingCase("conv_stats", shape, with_, dtype)
        for shape, with_ in (
            (_three(2, 9, 11, 64, 1), ("prologue",)),
            (_three(2, 9, 12, 64, 2), ()),
            (_three(1, 7, 5, 128, 1), ("prologue",)),
            (_three(2, 9, 12, 64, 2, 128), ()),
        )
        for dtype in HALF
    ),
    *(
        dataclasses.replace(case, dtype=dtype)
        for case in (
            ConvCase(_three(2, 9, 11, 64, 1), residual="same"),
            ConvCase(_three(2, 9, 11, 64, 1), residual="option_a", residual_channels=32, residual_stride=2),
            ConvCase(_three(2, 10, 11, 64, 2), bn="folded", act="identity"),
            ConvCase(_three(1, 7, 5, 128, 1), bn="shift", residual="same"),
            ConvCase(_three(1, 7, 5, 128, 2), bn="none"),
            ConvCase(_three(2, 10, 11, 64, 2, 128), residual="same"),
            ConvCase(_one(2, 9, 11, 64, 96), residual="same"),
            ConvCase(_one(1, 5, 5, 256, 64), bn="none"),
            ConvCase(_one(2, 9, 12, 64, 128, 2), bn="folded", act="identity"),
            ConvCase(_stem(2, 19, 37)),
            ConvCase(_stem(1, 18, 9), bn="none", residual="same", act="identity"),
            StemCase(2, 33, 46),
            StemCase(3, 17, 9, layout="misaligned"),
        )
        for dtype in HALF
    ),
    *(
        TrainingCase(op, shape, with_, dtype)
        for op, shape, with_ in (
            ("conv_stats", _one(2, 9, 11, 64, 96), ("prologue",)),
            ("conv_stats", _one(2, 9, 12, 64, 128, 2), ()),
            ("conv_stats", _stem(2, 19, 37), ()),
            ("conv_stats", _stem(1, 32, 64), ()),
            ("conv1x1_bn_add_act", _one(2, 9, 11, 64, 96), ("prologue", "residual")),
            ("conv1x1_bn_add_act", _one(2, 9, 12, 64, 96, 2), ("identity",)),
            ("gram", _one(2, 9, 11, 64, 96), ("prologue",)),
            ("gram", _one(2, 9, 12, 136, 96, 2), ()),
            ("gram_backward_finish", _one(2, 9, 11, 64, 96), ("prologue",)),
            ("gram_backward_finish", _one(1, 7, 9, 136, 96), ()),
            ("gram_products", _one(2, 9, 11, 64, 136), ("prologue", "out")),
            ("gram_products", _one(2, 9, 12, 64, 96, 2), ()),
            ("gram_products", _one(2, 9, 11, 64, 520), ("prologue", "out")),
            ("conv_dgrad", _three(2, 9, 11, 64, 1), ("below",)),
            ("conv_dgrad", _three(1, 7, 5, 128, 1), ("block_sums", "skip_out")),
            ("conv_dgrad", _three(2, 9, 12, 64, 2), ("constant",)),
            ("conv_dgrad", _three(2, 9, 12, 64, 2, 128), ("block_sums", "skip", "skip_2")),
            ("conv_dgrad", _three(1, 7, 5, 128, 2, 256), ("skip", "skip_2", "constant")),
            ("conv_wgrad", _three(2, 9, 11, 64, 1), ("prologue",)),
            ("conv_wgrad", _three(2, 9, 12, 64, 2), ("constant",)),
            ("conv_wgrad", _three(1, 9, 12, 64, 2, 128), ()),
            ("conv_wgrad", _stem(2, 19, 37), ()),
            ("conv_wgrad", _stem(1, 18, 9), ("constant",)),
            ("conv_dgrad", _one(2, 9, 11, 64, 96), ("below",)),
            ("conv_dgrad", _one(2, 9, 12, 136, 64), ("block_sums", "skip_out")),
            ("conv_dgrad", _one(2, 9, 12, 64, 96, 2), ("block", "skip", "skip_2")),
            ("conv_wgrad", _one(2, 9, 11, 64, 96), ("prologue",)),
            ("conv_wgrad", _one(2, 9, 12, 136, 64, 2), ("constant",)),
            ("conv1x1_backward", _one(2, 9, 11, 136, 64), ("rectified", "skip_out")),
            ("conv1x1_backward", _one(2, 9, 11, 64, 40), ("constant",)),
            ("conv1x1_backward", _one(2, 9, 11, 264, 64), ("rectified", "skip_out")),
            ("conv1x1_backward", _one(2, 9, 12, 64, 64), ("rectified", "skip", "skip_2")),
            ("conv1x1_backward", _one(2, 9, 12, 64, 96), ("skip", "skip_2", "constant")),
        )
        for dtype in HALF
    ),
]


def op_of(case: TrainingCase | ConvCase | StemCase) -> str:
    return getattr(case, "op", "conv_scale_shift_act")


def assert_equals_the_reference(module, case: TrainingCase | ConvCase | StemCase, **where) -> None:
    op = op_of(case)
    ours = getattr(module, op)
    if isinstance(case, TrainingCase):
        assert_parity(comparable(op, ours), judge(op), case, **where)
    else:
        assert_parity(ours, getattr(reference, op), case, **where)


@needs_compiler
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{op_of(case)}-{case.id}")
def test_convolutions_reach_their_kernel_and_come_back(case, monkeypatch):
    guards = install(monkeypatch, EmulatedExtension(seed=1))
    assert_equals_the_reference(backend, case)
    guards.check()


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "with_", "kernels"),
    [
        (_one(1, 4, 4, 256, 64), ("rectified", "skip_out"), ["conv1x1_backward"]),
        (_one(1, 4, 4, 264, 64), (), ["conv1x1_dgrad", "conv1x1_wgrad"]),
        (_one(1, 4, 4, 64, 72), (), ["conv1x1_dgrad", "conv1x1_wgrad"]),
        (_one(1, 4, 4, 64, 64), ("skip", "skip_2"), ["conv1x1_dgrad", "conv1x1_wgrad"]),
    ],
    ids=str,
)
def test_both_gradients_come_from_one_read_where_there_is_room(shape, with_, kernels, monkeypatch):
    extension, launched = EmulatedExtension(), []
    install(monkeypatch, extension)
    call = extension._call

    def recorded(name: str, *arguments: int | float) -> int:
        if name in QUESTIONS or not name.startswith("conv"):
            return call(name, *arguments)
        launched.append(name)
        return 0

    monkeypatch.setattr(extension, "_call", recorded)
    backend.conv1x1_backward(**TrainingCase("conv1x1_backward", shape, with_, torch.bfloat16).inputs())
    assert launched == kernels


@pytest.mark.parametrize("op", availability.OPS)
def test_the_backend_has_the_signature_of_the_op(op):
    there = training if op in training.OPS else ops
    names = [(p.name, p.default) for p in inspect.signature(getattr(there, op)).parameters.values()]
    assert names == [(p.name, p.default) for p in inspect.signature(getattr(backend, op)).parameters.values()]


def test_the_ops_that_it_names_are_those_that_it_has():
    known = {*ops.OPS, *training.OPS}
    assert {op for op in known if hasattr(backend, op)} == set(availability.OPS)


# ---- bad input, as the launchers refuse it ----


@pytest.fixture
def emulated(monkeypatch):
    if needs_compiler.args[0]:
        pytest.skip(needs_compiler.kwargs["reason"])
    install(monkeypatch, EmulatedExtension())
    return backend


def test_misaligned_tensors_beside_the_first_are_refused(emulated):
    z, ones = nhwc(1, 8, 4, 4), torch.ones(8)
    with pytest.raises(BackendError, match=r"bn_add_act of \(1, 4, 4, 8\): residual begins at .* no multiple of 16"):
        emulated.bn_add_act(z, ones, ones, MISALIGNED, 1, "relu")
    with pytest.raises(BackendError, match="scale begins at an address"):
        emulated.bn_add_act(z, torch.ones(9)[1:], ones, None, 1, "relu")


def test_images_are_not_normalised_on_the_way(emulated):
    three, weight = torch.ones(3), torch.zeros(64, 3, 7, 7, dtype=torch.bfloat16)
    window = ((2, 2), (3, 3))
    with pytest.raises(BackendError, match="of images with 3 channels take no in_scale and in_shift; normalise"):
        emulated.conv_stats(nhwc(1, 3, 8, 8), weight, three, three, *window, (1, 1), 1)
    gradient = (nhwc(1, 64, 4, 4), None, torch.ones(64), None, None)
    with pytest.raises(BackendError, match="of images with 3 channels take no in_scale"):
        emulated.conv_wgrad(*gradient, nhwc(1, 3, 8, 8), three, three, list(weight.shape), *window)


def test_option_a_pads_by_whole_chunks(emulated):
    z, ones = nhwc(1, 24, 4, 4), torch.ones(24)
    with pytest.raises(BackendError, match="option A pads 8 channels, and the kernel takes multiples of 16"):
        emulated.bn_add_act(z, ones, ones, nhwc(1, 16, 4, 4), 1, "relu")


@pytest.mark.parametrize(
    ("k", "with_", "got"),
    [
        (64, ("block_sums", "skip", "skip_2"), "64 to 64 channels with stride 2 and skip_stride 2"),
        (128, ("skip",), "64 to 128 channels with stride 2 and skip_stride 1"),
    ],
)
def test_a_skip_that_no_strided_block_has_is_refused(emulated, k, with_, got):
    case = TrainingCase("conv_dgrad", _three(1, 4, 4, 64, 2, k), with_, torch.bfloat16)
    with pytest.raises(BackendError, match=f"only where the channels double, got {got}"):
        emulated.conv_dgrad(**case.inputs())


def test_channels_windows_and_sizes_are_refused(emulated):
    with pytest.raises(BackendError, match=r"channel_stats of \(1, 4, 4, 12\): z has 12 channels"):
        emulated.channel_stats(nhwc(1, 12, 4, 4))
    with pytest.raises(BackendError, match="12 channels are no multiple of 8"):
        emulated.bn_finalize(torch.zeros(2, 3, 12), None, None, 1e-5)
    with pytest.raises(BackendError, match="no window of 17"):
        emulated.bn_relu_maxpool(nhwc(1, 8, 32, 32), torch.ones(8), torch.ones(8), 17, 1, 0)
    extension = EmulatedExtension()
    with pytest.raises(ValueError, match=r"\(32768, 32, 32, 64\): x has 2\^31 elements or more"):
        extension.global_avg_pool(16, 16, 0, 2**15, 32, 32, 64, 0)
    with pytest.raises(ValueError, match="element type 2 is neither"):
        extension.global_avg_pool(16, 16, 2, 1, 2, 2, 8, 0)
    with pytest.raises(ValueError, match="x is missing"):
        extension.global_avg_pool(0, 16, 0, 1, 2, 2, 8, 0)


def test_a_skip_of_an_odd_stride_is_refused(emulated):
    case = TrainingCase("conv_dgrad", _one(1, 9, 9, 64, 64), ("skip",), torch.bfloat16)
    arguments = case.inputs() | {"skip": nhwc(1, 64, 3, 3), "skip_stride": 3}
    with pytest.raises(BackendError, match=r"conv1x1_dgrad of \(1, 9, 9, 64, 64\): skip_stride 3 is neither 1 nor 2"):
        emulated.conv_dgrad(**arguments)
