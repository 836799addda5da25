"""The backend `cuda`: who may use it and for what, its signatures, its convolutions, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
import torch
from torch import Tensor

import fused_resnet
from fused_resnet import ops
from fused_resnet.backends import cuda as backend
from fused_resnet.backends import reference
from fused_resnet.backends.cuda import availability
from fused_resnet.errors import BackendError
from fused_resnet.ops import dispatch, training
from fused_resnet.shapes import ConvShape

from .cases import ConvCase
from .emulated import needs_compiler
from .emulated_extension import EmulatedExtension, install
from .parity import assert_parity
from .training_arguments import comparable
from .training_cases import TrainingCase

HALF = (torch.bfloat16, torch.float16)


def nhwc(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(size, dtype=dtype).contiguous(memory_format=torch.channels_last)


def _three(n, h, w, c, stride) -> ConvShape:
    return ConvShape(n, c, h, w, c, 3, 3, (stride, stride), (1, 1))


def _one(n, h, w, c, k, stride=1) -> ConvShape:
    return ConvShape(n, c, h, w, k, 1, 1, (stride, stride), (0, 0))


CONVOLUTIONS = [
    *(
        TrainingCase("conv_stats", shape, with_, dtype)
        for shape, with_ in (
            (_three(2, 9, 11, 64, 1), ("prologue",)),
            (_three(2, 9, 12, 64, 2), ()),
            (_three(1, 7, 5, 128, 1), ("prologue",)),
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
            ConvCase(_one(2, 9, 11, 64, 96), residual="same"),
            ConvCase(_one(1, 5, 5, 256, 64), bn="none"),
            ConvCase(_one(2, 9, 12, 64, 128, 2), bn="folded", act="identity"),
        )
        for dtype in HALF
    ),
    *(
        TrainingCase(op, shape, with_, dtype)
        for op, shape, with_ in (
            ("conv_stats", _one(2, 9, 11, 64, 96), ("prologue",)),
            ("conv_stats", _one(2, 9, 12, 64, 128, 2), ()),
            ("conv1x1_bn_add_act", _one(2, 9, 11, 64, 96), ("prologue", "residual")),
            ("conv1x1_bn_add_act", _one(2, 9, 12, 64, 96, 2), ("identity",)),
            ("gram_products", _one(2, 9, 11, 64, 136), ("prologue", "out")),
            ("gram_products", _one(2, 9, 12, 64, 96, 2), ()),
            ("conv_dgrad", _three(2, 9, 11, 64, 1), ("below",)),
            ("conv_dgrad", _three(1, 7, 5, 128, 1), ("block_sums", "skip_out")),
            ("conv_dgrad", _three(2, 9, 12, 64, 2), ("constant",)),
            ("conv_wgrad", _three(2, 9, 11, 64, 1), ("prologue",)),
            ("conv_wgrad", _three(2, 9, 12, 64, 2), ("constant",)),
        )
        for dtype in HALF
    ),
]


def op_of(case: TrainingCase | ConvCase) -> str:
    return getattr(case, "op", "conv_scale_shift_act")


def assert_equals_the_reference(module, case: TrainingCase | ConvCase, **where) -> None:
    ours, theirs = getattr(module, op_of(case)), getattr(reference, op_of(case))
    if isinstance(case, TrainingCase):
        ours, theirs = comparable(op_of(case), ours), comparable(op_of(case), theirs)
    assert_parity(ours, theirs, case, **where)


@needs_compiler
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{op_of(case)}-{case.id}")
def test_convolutions_reach_their_kernel_and_come_back(case, monkeypatch):
    guards = install(monkeypatch, EmulatedExtension(seed=1))
    assert_equals_the_reference(backend, case)
    guards.check()


@pytest.mark.parametrize("op", availability.OPS)
def test_the_backend_has_the_signature_of_the_op(op):
    there = training if op in training.OPS else ops
    names = [(p.name, p.default) for p in inspect.signature(getattr(there, op)).parameters.values()]
    assert names == [(p.name, p.default) for p in inspect.signature(getattr(backend, op)).parameters.values()]


def test_the_ops_that_it_names_are_those_that_it_has():
    known = {*ops.OPS, *training.OPS}
    assert {op for op in known if hasattr(backend, op)} == set(availability.OPS)


# ---- who may use it ----


class OnGpu:
    """A CPU tensor that says it lies on a GPU."""

    device = torch.device("cuda", 0)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __getattr__(self, name: str):
        return getattr(self._tensor, name)


class Compiled:
    """An extension with every kernel, compiled for these architectures."""

    def __init__(self, names: str) -> None:
        self.names = names

    def kernels(self) -> dict[str, str]:
        return dict.fromkeys(availability.OPS.values(), self.names)


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an sm_90 GPU and the extension."""
    availability.compiled_for.cache_clear()
    monkeypatch.setattr(availability, "extension", lambda: Compiled("sm_80 sm_90a compute_90"))
    monkeypatch.setattr(availability, "architecture", lambda device: 90)
    yield monkeypatch
    availability.compiled_for.cache_clear()


HUGE = torch.empty(1, dtype=torch.bfloat16).expand(2**15, 64, 2**5, 2**5)
MISALIGNED = torch.zeros(8 * 16 + 1, dtype=torch.bfloat16)[1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)
FILTERS = torch.zeros(64, 64, 3, 3)
UNSUPPORTED = {
    "float32": ("bn_add_act", nhwc(1, 8, 4, 4, dtype=torch.float32), {}, "float16 and bfloat16, got float32"),
    "channels": ("bn_add_act", nhwc(1, 12, 4, 4), {}, "multiples of 8 channels, got 12"),
    "elements": ("bn_add_act", HUGE, {}, r"2\^31 elements or more"),
    "alignment": ("bn_add_act", MISALIGNED, {}, "begins in between; clone it"),
    "half partials": ("bn_finalize", torch.zeros(4, 3, 8).half(), {}, "takes float32, got float16"),
    "no kernel": ("gram", nhwc(1, 8, 4, 4), {}, "no kernel for gram: it has those of"),
    "gradient of 1x1 filters": (
        "conv_wgrad",
        nhwc(1, 64, 4, 4),
        {"weight_size": (64, 64, 1, 1), "stride": (1, 1), "padding": (0, 0)},
        "takes 3x3 filters with stride 1 or 2.* got 1x1",
    ),
    "filters of 1x3": ("conv_stats", nhwc(1, 64, 4, 4), {"weight": FILTERS[:, :, :1]}, "3x3 ones .* got 1x3"),
    "padded 1x1": (
        "conv_stats",
        nhwc(1, 64, 4, 4),
        {"weight": FILTERS[:, :, :1, :1], "padding": (1, 1)},
        r"no padding .* padding \[1, 1\]",
    ),
    "60 filters": ("conv_stats", nhwc(1, 64, 4, 4), {"weight": FILTERS[:60, :, :1, :1]}, "multiples of 8, .* got 60"),
    "many filters": (
        "gram_products",
        nhwc(1, 512, 4, 4),
        {"weight": torch.zeros(512, 128), "stride": 1},
        "at most 256 filters .* got 512 of 128",
    ),
    "no padding": ("conv_stats", nhwc(1, 64, 4, 4), {"weight": FILTERS}, r"padding 1, .* padding \[0, 0\]"),
    "more filters": (
        "conv_stats",
        nhwc(1, 64, 4, 4),
        {"weight": FILTERS.repeat(2, 1, 1, 1), "padding": (1, 1)},
        "in and out alike, got 64 to 128",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_it_does_not_take_it_names(name, hopper):
    op, x, arguments, words = UNSUPPORTED[name]
    reason = availability.unsupported_reason(op, OnGpu(x), **arguments)
    assert reason is not None and re.search(words, reason), reason


def test_what_it_takes(hopper):
    assert availability.unsupported_reason("bn_add_act", OnGpu(nhwc(2, 8, 4, 4))) is None
    assert availability.unsupported_reason("bn_finalize", OnGpu(torch.zeros(4, 3, 8))) is None
    # copied into channels_last, to where an allocation begins
    assert availability.unsupported_reason("bn_add_act", OnGpu(MISALIGNED.contiguous()[:, :, 1:])) is None
    arguments = {"weight": FILTERS, "padding": (1, 1), "stride": (2, 2)}
    assert availability.unsupported_reason("conv_stats", OnGpu(nhwc(1, 64, 4, 4)), **arguments) is None


def test_a_tensor_on_the_cpu_and_a_gpu_that_it_was_not_compiled_for(hopper):
    x = nhwc(2, 8, 4, 4)
    assert "need a CUDA tensor, got one on cpu" in availability.unsupported_reason("bn_add_act", x)
    hopper.setattr(availability, "extension", lambda: Compiled("sm_80"))
    availability.compiled_for.cache_clear()
    assert "was compiled for sm_80, and cuda:0 is sm_90" in availability.unsupported_reason("bn_add_act", OnGpu(x))


@pytest.mark.parametrize(
    ("names", "runs", "not_on"),
    [
        ("sm_80", (80, 86, 89), (75, 90, 100)),
        ("sm_90a", (90,), (80, 100, 120)),
        ("sm_80 sm_90a compute_90", (80, 86, 90, 100, 103, 120), (75,)),
        ("sm_86", (86, 89), (80, 90)),
        ("sm_100f", (100, 103), (90, 120)),
        ("compute_90a", (90,), (100,)),
        ("nothing", (), (80, 90)),
    ],
)
def test_what_machine_code_and_ptx_run_on(names, runs, not_on):
    assert all(availability.runs_on(names, arch) for arch in runs)
    assert not any(availability.runs_on(names, arch) for arch in not_on)


def test_auto_takes_what_was_proven_where_it_was_proven(hopper):
    x = OnGpu(nhwc(2, 8, 4, 4))
    hopper.setattr(dispatch, "_available", lambda name: backend if name == "cuda" else reference)
    assert dispatch.choose("bn_add_act", x)[0] == "triton"
    assert "no GPU has run the parity tests of its bn_add_act" in dispatch.choose("bn_add_act", x)[1]
    hopper.setattr(availability, "PROVEN_ARCHITECTURES", {"bn_add_act": frozenset({90})})
    assert dispatch.choose("bn_add_act", x) == ("cuda", "first choice on cuda")
    assert dispatch.choose("bn_act_backward", x)[0] == "triton"
    hopper.setattr(availability, "architecture", lambda device: 80)
    name, reason = dispatch.choose("bn_add_act", x)
    assert name == "triton" and "passed its parity tests on sm_90, but has not run them on sm_80" in reason
    assert "bn_add_act on sm_90" in availability.proof()


def test_nothing_is_proven_yet_and_so_auto_takes_nothing():
    """To be changed with the commit that names the run on a device."""
    assert availability.PROVEN_ARCHITECTURES == {} and "none of its kernels" in availability.proof()


def test_by_name_it_runs_or_raises_and_trains_through_torch(hopper):
    hopper.setattr(dispatch, "_available", lambda name: backend)
    hopper.setattr(dispatch, "_requested", "cuda")
    assert dispatch.choose("bn_add_act", OnGpu(nhwc(2, 8, 4, 4)))[0] == "cuda"
    with pytest.raises(BackendError, match="'cuda' cannot run gram: it has no kernel for gram: .* no network trains"):
        dispatch.choose("gram", OnGpu(nhwc(2, 8, 4, 4)))
    assert not dispatch.trains_by_name()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_not_there(monkeypatch):
    with pytest.raises(BackendError, match="'cuda' is not available here: .*(no CUDA GPU|without its compiled)"):
        fused_resnet.use_backend("cuda")
    monkeypatch.setattr(availability, "extension", lambda: None)
    monkeypatch.setattr(availability, "_import_error", lambda: "the package was installed without it")
    assert availability.unavailable_reason() == "the package was installed without it"


def test_an_extension_that_cannot_be_imported_is_told_from_one_that_is_not_there(monkeypatch):
    def fail(error: ImportError):
        def import_module(name):
            raise error

        return import_module

    for error, words in (
        (ModuleNotFoundError("No module named 'fused_resnet._C'"), "installed without its compiled extension"),
        (ImportError("GLIBCXX_3.4.32 not found"), "cannot be imported (GLIBCXX_3.4.32 not found)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(availability.importlib, "import_module", fail(error))
            reason = availability._import_error.__wrapped__()
        assert words in reason and "install again where a CUDA toolkit is" in reason


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


def test_option_a_pads_by_whole_chunks(emulated):
    z, ones = nhwc(1, 24, 4, 4), torch.ones(24)
    with pytest.raises(BackendError, match="option A pads 8 channels, and the kernel takes multiples of 16"):
        emulated.bn_add_act(z, ones, ones, nhwc(1, 16, 4, 4), 1, "relu")


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
