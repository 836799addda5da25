"""The Triton poolings, the stem and the option-A shortcut against the reference, with canaries around every output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.parity import compare, sampled
from tests.support.guarded import GuardedOutput

pytest.importorskip("triton", reason="triton is not installed")
launch = pytest.importorskip("fused_resnet.backends.triton.launch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]


def names(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture(autouse=True)
def guards(monkeypatch):
    """Every output that the launcher allocates is guarded, and checked at the end."""
    made = []

    def output(like: Tensor, size, out: Tensor | None) -> Tensor:
        made.append(GuardedOutput(tuple(size), like.dtype, like.device))
        return made[-1].tensor

    monkeypatch.setattr(launch, "_output", output)
    yield
    assert made, "no output was allocated"
    for guard in made:
        guard.check()


def feature_map(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, dtype=torch.float32).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((2, 5, 7, 9), 3, 2, 1), ((1, 16, 4, 4), 2, 2, 0), ((1, 3, 6, 5), 3, 1, 1), ((2, 130, 3, 3), 3, 2, 1)],
)
def test_max_pool(size, kernel, stride, padding, dtype):
    x = feature_map(*size, dtype=dtype)
    assert torch.equal(
        launch.max_pool(x, kernel, stride, padding), torch.nn.functional.max_pool2d(x, kernel, stride, padding)
    )


def test_max_pool_of_minus_infinity_and_nan():
    x = feature_map(1, 4, 6, 6)
    x[0, 0] = -torch.inf
    x[0, 1, 2, 3] = torch.nan
    x[0, 2, 0, 0] = torch.inf
    expected = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(launch.max_pool(x, 3, 2, 1), expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("size", [(2, 5, 7, 9), (3, 64, 7, 7), (1, 130, 1, 1), (1, 8, 40, 33)])
def test_global_avg_pool(size, dtype):
    x = feature_map(*size, dtype=dtype)
    torch.testing.assert_close(backend.global_avg_pool(x), reference.global_avg_pool(x))


def test_global_avg_pool_does_not_overflow_in_float16():
    x = torch.full((1, 2, 16, 16), 3e4, dtype=torch.float16, device=DEVICE)
    assert torch.equal(backend.global_avg_pool(x), x[:, :, :1, :1])


def test_global_avg_pool_keeps_nan_and_inf_in_their_channels():
    x = feature_map(2, 3, 4, 4)
    x[0, 1, 2, 2] = torch.nan
    x[1, 2, 0, 3] = torch.inf
    torch.testing.assert_close(backend.global_avg_pool(x), reference.global_avg_pool(x), equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize(
    ("size", "channels", "stride"),
    [((2, 5, 7, 9), 8, 2), ((1, 16, 8, 8), 32, 2), ((2, 6, 3, 4), 6, 3), ((1, 3, 5, 5), 140, 1)],
)
def test_option_a_shortcut(size, channels, stride, dtype):
    x = feature_map(*size, dtype=dtype)
    ours = backend.option_a_shortcut(x, channels, stride)
    assert torch.equal(ours, reference.option_a_shortcut(x, channels, stride))


@pytest.mark.parametrize("layout", ["nchw", "expanded", "misaligned"])
def test_inputs_that_are_not_dense_nhwc(layout):
    x = feature_map(3, 4, 5, 6).contiguous()
    x = {"nchw": x, "expanded": x[:1].expand(3, 4, 5, 6), "misaligned": x[1:]}[layout]
    assert torch.equal(launch.max_pool(x, 3, 2, 1), torch.nn.functional.max_pool2d(x, 3, 2, 1))
    assert torch.equal(backend.option_a_shortcut(x, 6, 2), reference.option_a_shortcut(x, 6, 2))
    torch.testing.assert_close(backend.global_avg_pool(x), reference.global_avg_pool(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=names)
@pytest.mark.parametrize("function", [backend.conv_bn_relu_maxpool, backend.conv_bn_relu_maxpool_auto])
def test_the_stem(function, dtype):
    x = feature_map(2, 3, 21, 18, dtype=dtype)
    weight = feature_map(8, 3, 7, 7, dtype=dtype) / 12
    bn = [torch.rand(8, device=DEVICE) + 0.5 for _ in range(4)]
    gold = reference.conv_bn_relu_maxpool(x.double(), weight.double(), *[v.double() for v in bn], 1e-5)
    disturbed = sampled(lambda: reference.conv_bn_relu_maxpool(x, weight, *bn, 1e-5))
    row = compare("y", function(x, weight, *bn, 1e-5), gold, disturbed)
    assert row.passed, row
