"""Who may use the backend `cuda`, for what, and on which GPU."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import fused_resnet
from fused_resnet.backends import cuda as backend
from fused_resnet.backends import reference
from fused_resnet.backends.cuda import availability
from fused_resnet.errors import BackendError
from fused_resnet.ops import asked, dispatch

from .test_backend import MISALIGNED, nhwc


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
FILTERS = torch.zeros(64, 64, 3, 3)
UNSUPPORTED = {
    "float32": ("bn_add_act", nhwc(1, 8, 4, 4, dtype=torch.float32), {}, "float16 and bfloat16, got float32"),
    "channels": ("bn_add_act", nhwc(1, 12, 4, 4), {}, "multiples of 8 channels, got 12"),
    "elements": ("bn_add_act", HUGE, {}, r"2\^31 elements or more"),
    "alignment": ("bn_add_act", MISALIGNED, {}, "begins in between; clone it"),
    "half partials": ("bn_finalize", torch.zeros(4, 3, 8).half(), {}, "takes float32, got float16"),
    "no kernel": ("option_a_shortcut", nhwc(1, 8, 4, 4), {}, "no kernel for option_a_shortcut: it has those of"),
    "half sums": ("gram_finalize", torch.zeros(8).half(), {}, "takes float32, got float16"),
    "gradient of padded 1x1": (
        "conv_wgrad",
        nhwc(1, 64, 4, 4),
        {"weight_size": (64, 64, 1, 1), "stride": (1, 1), "padding": (1, 1)},
        r"no padding .* padding \[1, 1\]",
    ),
    "images, 32 filters": (
        "conv_stats",
        nhwc(1, 3, 8, 8),
        {"weight": torch.zeros(32, 3, 7, 7), "stride": (2, 2), "padding": (3, 3)},
        "images takes 3 channels and 64 filters of 7x7 .* got 3 channels and 32 of 7x7",
    ),
    "images, 3x3": (
        "conv_scale_shift_act",
        nhwc(1, 3, 8, 8),
        {"weight": torch.zeros(64, 3, 3, 3), "padding": (1, 1)},
        r"64 of 3x3 with stride \[1, 1\]",
    ),
    "images, 1x1": ("conv_stats", nhwc(1, 3, 8, 8), {"weight": torch.zeros(64, 3, 1, 1)}, "64 of 1x1"),
    "stem of 64 channels": (
        "conv_bn_relu_maxpool",
        nhwc(1, 64, 8, 8),
        {"weight": FILTERS, "stride": (1, 1), "padding": (1, 1)},
        "images takes 3 channels .* got 64 channels and 64 of 3x3",
    ),
    "gradient of images' filters": (
        "conv_wgrad",
        nhwc(1, 16, 8, 8),
        {"weight_size": (16, 3, 3, 3), "stride": (1, 1), "padding": (1, 1)},
        "its conv_wgrad of images takes .* got 3 channels and 16 of 3x3",
    ),
    "images' gradient": (
        "conv_dgrad",
        nhwc(1, 64, 4, 4),
        {"weight": torch.zeros(64, 3, 7, 7), "stride": (2, 2), "padding": (3, 3)},
        "3x3 .* got 7x7",
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
        {"weight": torch.zeros(2056, 128), "stride": 1},
        "at most 2048 filters .* got 2056 of 128",
    ),
    "no padding": ("conv_stats", nhwc(1, 64, 4, 4), {"weight": FILTERS}, r"padding 1, .* padding \[0, 0\]"),
    "more filters": (
        "conv_stats",
        nhwc(1, 64, 4, 4),
        {"weight": FILTERS.repeat(2, 1, 1, 1), "padding": (1, 1)},
        r"with stride 2 64, 128, 256 to twice as many, got 64 to 128 with stride \[1, 1\]",
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
    for weight in (FILTERS, FILTERS.repeat(2, 1, 1, 1)):
        arguments = {"weight": weight, "padding": (1, 1), "stride": (2, 2)}
        assert availability.unsupported_reason("conv_stats", OnGpu(nhwc(1, 64, 4, 4)), **arguments) is None


def test_it_takes_images_wherever_they_begin(hopper):
    images = torch.zeros(3 * 8 * 8 + 1, dtype=torch.bfloat16)[1:].view(1, 8, 8, 3).permute(0, 3, 1, 2)
    window = {"stride": (2, 2), "padding": (3, 3)}
    for op in ("conv_scale_shift_act", "conv_stats", "conv_bn_relu_maxpool"):
        assert availability.unsupported_reason(op, OnGpu(images), torch.zeros(64, 3, 7, 7), **window) is None
    gradient = OnGpu(nhwc(1, 64, 4, 4))
    assert availability.unsupported_reason("conv_wgrad", gradient, weight_size=(64, 3, 7, 7), **window) is None


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


def test_by_name_it_runs_or_raises_and_trains(hopper):
    hopper.setattr(dispatch, "_available", lambda name: backend)
    hopper.setattr(asked, "_process", "cuda")
    assert dispatch.choose("bn_add_act", OnGpu(nhwc(2, 8, 4, 4)))[0] == "cuda"
    with pytest.raises(BackendError, match="'cuda' cannot run gram: its gram takes float16 and bfloat16, got float32"):
        dispatch.choose("gram", OnGpu(nhwc(2, 8, 4, 4, dtype=torch.float32)))
    assert dispatch.trains_by_name()


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


def test_what_the_installation_said_of_it_is_repeated(monkeypatch, tmp_path):
    def absent(name):
        raise ModuleNotFoundError(name)

    (tmp_path / "_C.txt").write_text("no nvcc was found\n")
    monkeypatch.setattr(availability, "WHY_NOT", tmp_path / "_C.txt")
    monkeypatch.setattr(availability.importlib, "import_module", absent)
    assert "fused_resnet._C (no nvcc was found); install again" in availability._import_error.__wrapped__()
