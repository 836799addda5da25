"""The Triton convolutions against the reference in float64, with canaries around every buffer.

On a machine without a GPU they run in Triton's interpreter (float32 and float16), one program after the other.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.shapes import ConvShape
from fused_resnet.tuning import Choice, TileConfig, forced
from tests.support.cases import ConvCase
from tests.support.guarded import GuardedOutput, amid_nans
from tests.support.parity import assert_parity

pytest.importorskip("triton", reason="triton is not installed")
launch = pytest.importorskip("fused_resnet.backends.triton.launch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = TileConfig(16, 16, 16, num_warps=4, num_stages=2, group_m=2)
WIDE = TileConfig(64, 32, 16, num_warps=4, num_stages=2)
ALGORITHMS = ("implicit_gemm", "implicit_gemm_tma", "aten")


@dataclasses.dataclass(frozen=True)
class TritonCase(ConvCase):
    """A call, the algorithm it is forced to take and its tile."""

    algorithm: str = "implicit_gemm"
    tile: TileConfig = SMALL
    kernel: str = "conv_pointer"

    @property
    def id(self) -> str:
        return f"{super().id}-{self.algorithm}-{self.kernel}-{self.tile.block_m}x{self.tile.block_n}"


def conv(**arguments) -> Tensor:
    """`conv_scale_shift_act` of the Triton backend with NaN around each input that it reads where it lies."""
    named = {name: amid_nans(value) for name, value in arguments.items() if _lies_dense(value)}
    return backend.conv_scale_shift_act(**(arguments | named))


def _lies_dense(value) -> bool:
    if not isinstance(value, Tensor) or value.data_ptr() % 16:
        return False
    return value.dim() == 1 or value.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def guards(monkeypatch):
    """Every output that the launcher allocates is guarded, and checked at the end."""
    made = []

    def output(like: Tensor, size, out: Tensor | None) -> Tensor:
        made.append(GuardedOutput(tuple(size), like.dtype, like.device))
        return made[-1].tensor

    monkeypatch.setattr(launch, "_output", output)
    yield made
    for guard in made:
        guard.check()


@pytest.fixture
def kernels(monkeypatch):
    """The names of the kernels launched."""
    names = []
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda plan, tensors: (names.append(plan.kernel), run(plan, tensors))[1])
    return names


def case(shape: ConvShape, **options) -> TritonCase:
    return TritonCase(shape, **options)


THREE = ConvShape(2, 16, 5, 7, 24, 3, 3, (1, 1), (1, 1))
ONE = ConvShape(2, 32, 5, 3, 40, 1, 1)
STRIDED = ConvShape(1, 16, 9, 7, 20, 3, 3, (2, 2), (1, 1))
STRIDED_ONE = ConvShape(3, 16, 7, 5, 33, 1, 1, (2, 2))
STEM = ConvShape(1, 3, 19, 13, 10, 7, 7, (2, 2), (3, 3))
ODD = ConvShape(2, 20, 5, 5, 17, 3, 3, (1, 1), (1, 1))
UNEVEN = ConvShape(1, 16, 6, 9, 8, 3, 2, (2, 1), (0, 2))
HALF = torch.float16
TMA = {"algorithm": "implicit_gemm_tma", "kernel": "conv_tma"}
RUNS = {"kernel": "conv_runs"}
ATEN = {"algorithm": "aten", "kernel": "scale_shift_act"}

CASES = [
    case(THREE),
    case(THREE, dtype=HALF, residual="same"),
    case(THREE, residual="same", tile=WIDE),
    case(THREE, **TMA),
    case(THREE, dtype=HALF, residual="same", **TMA),
    case(THREE, act="identity", tile=WIDE, **TMA),
    case(ONE, residual="same"),
    case(ONE, dtype=HALF, residual="same", **TMA),
    case(ONE, tile=WIDE, **TMA),
    case(STRIDED),
    case(STRIDED, dtype=HALF, algorithm="implicit_gemm_tma"),  # strided taps are no shifts of one box
    case(STRIDED_ONE, act="identity"),
    case(STRIDED_ONE, dtype=HALF, **TMA),
    case(STRIDED_ONE, residual="same", **TMA),
    case(UNEVEN, residual="same"),
    case(ConvShape(3, 16, 2, 3, 8, 3, 3, (1, 1), (1, 1)), residual="same", **TMA),  # boxes of two images and more
    case(ConvShape(1, 16, 6, 9, 8, 3, 2, (1, 1), (0, 1)), residual="same", **TMA),
    case(STEM, **RUNS),
    case(STEM, dtype=HALF, tile=WIDE, **RUNS),
    case(ODD, residual="same", **RUNS),
    case(ODD, dtype=HALF, algorithm="implicit_gemm_tma", **RUNS),
    case(ConvShape(1, 1, 4, 4, 1, 1, 1), **RUNS),
    case(ConvShape(1, 16, 1, 1, 1, 3, 3, (1, 1), (1, 1)), residual="same"),
    # the shortcut of option A: fewer channels, subsampled, both
    case(THREE, residual="option_a", residual_channels=24, residual_stride=2),
    case(ONE, residual="option_a", residual_channels=17, **TMA),
    case(THREE, dtype=HALF, residual="option_a", residual_channels=16, residual_stride=2, **TMA),
    case(STRIDED, residual="option_a", residual_channels=9, residual_stride=2),
    # batch norm's vectors: which are there, and in which dtype
    case(THREE, bn="folded"),
    case(THREE, bn="shift", residual="same"),
    case(THREE, bn="none", act="identity"),
    case(ONE, dtype=HALF, vectors=HALF),
    case(ONE, vectors=torch.float64, **TMA),
    # what the kernels do not take goes through ATen's convolution and one pass
    case(THREE, residual="same", **ATEN),
    case(ODD, dtype=HALF, residual="option_a", residual_channels=8, residual_stride=2, **ATEN),
    case(ConvShape(2, 16, 6, 6, 16, 3, 3, (1, 1), (1, 1), (1, 1), 4), residual="same", kernel="scale_shift_act"),
    case(ConvShape(2, 16, 9, 8, 16, 3, 3, (1, 1), (2, 2), (2, 2)), dtype=HALF, kernel="scale_shift_act"),
    # layouts: copied where not dense NHWC, and pointers where descriptors would need 16-byte bases
    case(THREE, layout="nchw", **TMA),
    case(THREE, layout="sliced"),
    case(THREE, layout="expanded", residual="same", residual_layout="expanded"),
    case(THREE, layout="misaligned_channels_last", algorithm="implicit_gemm_tma", residual="same"),
    case(THREE, layout="transposed", residual="same", residual_layout="nchw", **TMA),
    case(ODD, layout="misaligned", **RUNS),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_equals_the_reference(one, kernels):
    with forced(Choice(one.algorithm, None if one.algorithm == "aten" else one.tile)):
        assert_parity(conv, reference.conv_scale_shift_act, one, device=DEVICE)
    assert kernels == [one.kernel]


def test_the_default_tile_is_used_where_nothing_is_forced(kernels):
    one = case(ConvShape(1, 64, 4, 4, 16, 1, 1), residual="same")
    assert_parity(conv, reference.conv_scale_shift_act, one, device=DEVICE)
    assert kernels[0].startswith("conv_")


def test_auto_keeps_to_aten_where_nothing_was_measured(kernels):
    assert_parity(backend.conv_scale_shift_act_auto, reference.conv_scale_shift_act, case(THREE), device=DEVICE)
    assert kernels == ["scale_shift_act"]


def test_auto_takes_what_was_measured(kernels):
    with forced(Choice("implicit_gemm", SMALL, measured=True)):
        assert_parity(backend.conv_scale_shift_act_auto, reference.conv_scale_shift_act, case(THREE), device=DEVICE)
    assert kernels == ["conv_pointer"]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", [THREE, ODD, dataclasses.replace(ODD, c=3, w=9, padding=(1, 0))], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "minus_inf"])
def test_nan_and_inf_come_out_where_the_reference_has_them(algorithm, shape, value):
    arguments = case(shape, residual="same").inputs(DEVICE)
    arguments["x"][0, 2, 2, 4] = value
    arguments["residual"][1, 5, 0, 0] = value
    with forced(Choice(algorithm, None if algorithm == "aten" else SMALL)):
        ours = conv(**arguments)
    torch.testing.assert_close(ours, reference.conv_scale_shift_act(**arguments), equal_nan=True)
    expected = reference.conv_scale_shift_act(**arguments)
    assert (ours.isnan() == expected.isnan()).all() and (ours.isinf() == expected.isinf()).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_nan_in_one_filter_stays_in_its_channel(algorithm):
    arguments = case(ONE).inputs(DEVICE)
    arguments["running_var"][7] = torch.nan
    with forced(Choice(algorithm, None if algorithm == "aten" else SMALL)):
        ours = conv(**arguments)
    assert ours[:, 7].isnan().all() and not ours[:, :7].isnan().any() and not ours[:, 8:].isnan().any()


def test_the_pass_works_in_place_or_into_a_given_buffer():
    arguments = case(THREE, residual="same").inputs(DEVICE)
    shape = ConvShape.of(arguments["x"], arguments["weight"], 1, 1)
    out = GuardedOutput((shape.n, shape.k, shape.p, shape.q), torch.float32, DEVICE)
    bn = [arguments[name] for name in ("bn_weight", "bn_bias", "running_mean", "running_var")]
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    call = (arguments["x"], arguments["weight"], bn, 1e-5, arguments["residual"], *geometry, 1, "relu")
    expected = launch.conv(*call, lambda *_: Choice("aten"))
    given = launch.conv(*call, lambda *_: Choice("aten"), out=out.tensor)
    out.check()
    assert given.data_ptr() == out.tensor.data_ptr()
    assert torch.equal(given, expected)


def test_float32_is_tf32_where_torch_lets_convolutions_be():
    cudnn = torch.backends.cudnn
    for setting, value in ((cudnn, True), (cudnn, False), (cudnn.conv, "tf32"), (cudnn.conv, "ieee")):
        setattr(setting, "allow_tf32" if setting is cudnn else "fp32_precision", value)
        assert launch.dtype_name(torch.float32) == ("tfloat32" if value in (True, "tf32") else "float32")
        assert launch.dtype_name(HALF) == "float16"


def test_inputs_are_left_as_they_were():
    arguments = case(THREE, residual="same").inputs(DEVICE)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    for algorithm in ALGORITHMS:
        with forced(Choice(algorithm, None if algorithm == "aten" else SMALL)):
            backend.conv_scale_shift_act(**arguments)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())
