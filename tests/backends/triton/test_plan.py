"""What the Triton backend decides before it launches: kernel, index width, availability."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_resnet.backends import reference, triton
from fused_resnet.backends.triton import availability, plan
from fused_resnet.shapes import ConvShape
from fused_resnet.tuning import Choice, TileConfig, forced
from fused_resnet.tuning.boxes import box_of, box_utilisation, flattened
from tests.support.cases import ConvCase
from tests.support.parity import assert_parity

TILE = TileConfig(128, 64, 64, num_warps=4, num_stages=3)
SMALL = TileConfig(16, 16, 16, num_warps=4, num_stages=2)
THREE = ConvShape(256, 64, 56, 56, 64, 3, 3, (1, 1), (1, 1))


@pytest.mark.parametrize(
    ("shape", "arch", "aligned", "algorithm", "kernel"),
    [
        (THREE, 90, True, "implicit_gemm_tma", "conv_tma"),
        (THREE, 90, True, "implicit_gemm", "conv_pointer"),
        (THREE, 80, True, "implicit_gemm_tma", "conv_pointer"),
        (THREE, 90, False, "implicit_gemm_tma", "conv_pointer"),
        (dataclasses.replace(THREE, stride=(2, 2)), 90, True, "implicit_gemm_tma", "conv_pointer"),
        (dataclasses.replace(THREE, c=96), 90, True, "implicit_gemm_tma", "conv_runs"),
        (ConvShape(8, 64, 9, 9, 64, 1, 1, (2, 2)), 90, True, "implicit_gemm_tma", "conv_tma"),
        (ConvShape(8, 3, 224, 224, 64, 7, 7, (2, 2), (3, 3)), 90, True, "implicit_gemm", "conv_runs"),
    ],
)
def test_the_kernel_that_can_run_a_choice(shape, arch, aligned, algorithm, kernel):
    choice = Choice(algorithm, TILE)
    assert plan.plan_conv(shape, "bfloat16", arch, choice, plan.Epilogue(), aligned).kernel == kernel


def _wide(shape: ConvShape, algorithm: str = "implicit_gemm", **epilogue) -> bool:
    launch = plan.plan_conv(shape, "bfloat16", 90, Choice(algorithm, TILE), plan.Epilogue(**epilogue))
    return launch.constexprs["WIDE"]


@pytest.mark.parametrize("algorithm", ["implicit_gemm", "implicit_gemm_tma"])
def test_offsets_beyond_2_to_the_31_are_64_bit(algorithm):
    assert not _wide(THREE, algorithm)
    # 10,699 images of 64 x 56 x 56 are the first to pass 2^31 elements
    assert not _wide(dataclasses.replace(THREE, n=10_600), algorithm)
    assert _wide(dataclasses.replace(THREE, n=10_700), algorithm)
    assert _wide(dataclasses.replace(THREE, n=3_000, k=256), algorithm), "the output alone passes"
    residual = {"residual": (64, 112, 112), "residual_stride": 2}
    assert _wide(dataclasses.replace(THREE, n=2_700), algorithm, **residual), "the residual alone passes"


def test_the_passes_and_poolings_are_64_bit_too():
    assert plan.plan_scale_shift_act(10_700, 56, 56, 64, "bfloat16", plan.Epilogue()).constexprs["WIDE"]
    assert plan.plan_max_pool(2_700, 112, 112, 64, 3, 2, 1, "bfloat16").constexprs["WIDE"]
    assert plan.plan_option_a(2_700, 112, 112, 64, 128, 2, "bfloat16").constexprs["WIDE"]
    assert plan.plan_global_avg_pool(700_000, 8, 8, 64, "bfloat16").constexprs["WIDE"]
    assert not plan.plan_scale_shift_act(256, 56, 56, 64, "bfloat16", plan.Epilogue()).constexprs["WIDE"]
    assert not plan.plan_max_pool(256, 112, 112, 64, 3, 2, 1, "bfloat16").constexprs["WIDE"]
    assert not plan.plan_option_a(256, 56, 56, 64, 128, 2, "bfloat16").constexprs["WIDE"]
    assert not plan.plan_global_avg_pool(256, 7, 7, 2048, "bfloat16").constexprs["WIDE"]


SHAPES = st.builds(
    lambda n, c, h, w, k, r, s, stride, padding: ConvShape(n, c, h + r, w + s, k, r, s, (stride, stride), padding),
    *[st.integers(1, extent) for extent in (3, 4, 7, 7, 5, 3, 3, 3)],
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
)


@settings(max_examples=60)
@given(shape=SHAPES, tiles=st.integers(1, 4))
def test_no_input_offset_passes_the_end_that_decides_the_width(shape, tiles):
    rows = tiles * -(-shape.gemm_m // tiles) + tiles
    end = plan._input_end(shape, rows)
    for row in range(rows):
        image, p, q = row // shape.q // shape.p, row // shape.q % shape.p, row % shape.q
        pixel = (image * shape.h + p * shape.stride.h) * shape.w + q * shape.stride.w
        assert (pixel + (shape.r - 1) * shape.w + shape.s - 1) * shape.c + shape.c - 1 < end


@settings(max_examples=60)
@given(shape=SHAPES, block_m=st.sampled_from([16, 64, 128, 256]))
def test_boxes_cover_every_pixel_once(shape, block_m):
    flat = flattened(shape)
    box = box_of(shape, block_m)
    assert box[0] * box[1] * box[2] == block_m and all(1 <= side <= 256 for side in box)
    counts = [-(-extent // side) for extent, side in zip((flat.n, flat.p, flat.q), box)]
    assert box_utilisation(shape, block_m) == shape.gemm_m / (counts[0] * counts[1] * counts[2] * block_m)
    assert flat.gemm_m == shape.gemm_m and flat.flops == shape.flops


@pytest.mark.parametrize("algorithm", ["implicit_gemm", "implicit_gemm_tma"])
@pytest.mark.parametrize("channels", [16, 5])
def test_64_bit_offsets_give_the_same(monkeypatch, algorithm, channels):
    monkeypatch.setattr(plan, "_INT32_END", 1)
    plan.plan_conv.cache_clear()
    shape = ConvShape(2, channels, 5, 6, 20, 3, 3, (1, 1), (1, 1))
    case = ConvCase(shape, residual="option_a", residual_channels=8, residual_stride=2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with forced(Choice(algorithm, SMALL)):
            assert_parity(triton.conv_scale_shift_act, reference.conv_scale_shift_act, case, device=device)
    finally:
        plan.plan_conv.cache_clear()


@pytest.mark.gpu
def test_elements_beyond_2_to_the_31():
    images, size = 10_800, 56
    x = torch.randn(1, 64, size, size, device="cuda", dtype=torch.float16).expand(images, -1, -1, -1)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 1, 1, device="cuda", dtype=torch.float16) / 8
    for algorithm in ("implicit_gemm", "implicit_gemm_tma", "aten"):
        with forced(Choice(algorithm, None if algorithm == "aten" else TILE)):
            y = triton.conv_scale_shift_act(x, weight)
        assert torch.equal(y[0], y[-1]), algorithm
        torch.testing.assert_close(y[-1:], reference.conv_scale_shift_act(x[-1:], weight))
        del y


def test_why_it_is_not_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "no CUDA GPU" in availability.unavailable_reason()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert availability.unavailable_reason() is None
    monkeypatch.setattr("triton.__version__", "3.5.1")
    assert "triton 3.5.1 is too old" in availability.unavailable_reason()


def test_an_old_gpu_is_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(availability, "architecture", lambda device: 75)
    assert availability.unavailable_reason().endswith("the best one here is sm_75")


def test_why_a_call_is_not_supported(monkeypatch):
    x = torch.zeros(1, 3, 4, 4)
    op = "conv_scale_shift_act"
    assert "float64" in triton.unsupported_reason(op, x.double())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.unsupported_reason(op, x) is None
    assert "interpreter computes bfloat16 wrongly" in triton.unsupported_reason(op, x.bfloat16())
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "got one on cpu" in triton.unsupported_reason(op, x)
