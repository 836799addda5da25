"""What the Triton training ops decide before they launch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_resnet.backends import triton as backend
from fused_resnet.backends.triton.training import plan as planning
from fused_resnet.backends.triton.training import split_plan as split_planning
from fused_resnet.shapes import ConvShape
from fused_resnet.tuning.heuristics import ITEMSIZE, shared_bytes
from tests.support.training_cases import TrainingCase

pytest.importorskip("triton", reason="triton is not installed")
launch = pytest.importorskip("fused_resnet.backends.triton.launch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREE = ConvShape(256, 64, 56, 56, 64, 3, 3, (1, 1), (1, 1))
STRIDED = ConvShape(256, 128, 56, 56, 128, 3, 3, (2, 2), (1, 1))


@given(st.integers(1, 10**7), st.integers(1, 400), st.sampled_from([16, 32, 64]))
def test_a_split_covers_every_pixel_once(pixels, tiles, block):
    split = split_planning.split_of(pixels, tiles, block)
    of_each = split.steps * split.block
    assert split.splits * of_each >= pixels > (split.splits - 1) * of_each
    assert split.splits * tiles <= max(tiles, 2 * split_planning._SPLIT_PROGRAMS)


@pytest.mark.parametrize("dtype", ["bfloat16", "tfloat32", "float32"])
def test_sums_are_split_alike_on_every_part(dtype):
    one = ConvShape(256, 512, 28, 28, 128, 1, 1)
    for plan_of, shape in (
        (split_planning.plan_conv_wgrad, THREE),
        (split_planning.plan_gram, planning.input_of(one)),
        (split_planning.plan_one_read, one),
    ):
        assert len({plan_of(shape, dtype, arch, ())[1] for arch in (80, 86, 90, 100, 120)}) == 1


@given(st.integers(1, 2048), st.integers(1, 256), st.sampled_from(["bfloat16", "float32", "tfloat32"]))
def test_a_tile_of_all_filters_fits_every_part(channels, filters, dtype):
    shape = ConvShape(8, channels, 9, 9, filters, 1, 1)
    for arch in (80, 86, 90, 100, 120):
        plan, splits = split_planning.plan_one_read(shape, dtype, arch, ())
        tile = plan.constexprs
        assert tile["BLOCK_K"] >= filters and tile["BLOCK_N"] >= 16 and tile["LOADS"] == plan.num_stages
        assert plan.grid == splits * -(-channels // tile["BLOCK_N"])
        loads = max(0, tile["LOADS"] - 1) * (2 * tile["BLOCK_K"] + 3 * tile["BLOCK_N"]) * tile["BLOCK_M"]
        kept = tile["BLOCK_K"] * (tile["BLOCK_N"] + tile["BLOCK_M"])
        assert (loads + kept) * ITEMSIZE[dtype] < shared_bytes(arch)


def _plans(shape: ConvShape, dtype: str = "bfloat16"):
    pixels, k = shape.gemm_m, shape.k
    yield planning.plan_conv_stats(shape, dtype, 90, ())
    yield planning.plan_conv_dgrad(shape, dtype, 90, ())
    yield split_planning.plan_conv_wgrad(shape, dtype, 90, ())[0]
    yield planning.plan_rows("channel_stats", pixels, k, ())
    yield planning.plan_gram_finish(pixels, k, dtype, 90, ())
    yield planning.plan_bn_add_act(shape.n, shape.p, shape.q, k, (), None, True)
    yield planning.plan_bn_pool(shape.n, shape.p, shape.q, k, (3, 2, 1), (), False)
    yield planning.plan_bn_pool(shape.n, shape.p, shape.q, k, (3, 2, 1), (), True)
    one = dataclasses.replace(shape, r=1, s=1, padding=(0, 0))
    yield split_planning.plan_gram(planning.input_of(one), dtype, 90, ())[0]
    yield split_planning.plan_one_read(one, dtype, 90, ())[0]
    yield planning.plan_conv_bn_add_act(one, dtype, 90, (), None, True)


def test_offsets_beyond_2_to_the_31_are_64_bit():
    # 10,699 images of 64 x 56 x 56 are the first to pass 2^31 elements
    assert not any(plan.constexprs["WIDE"] for plan in _plans(dataclasses.replace(THREE, n=9_500)))
    assert all(plan.constexprs["WIDE"] for plan in _plans(dataclasses.replace(THREE, n=10_700)))
    residual = planning.Residual((32, 112, 112), 2)
    plan = planning.plan_bn_add_act(5_400, 56, 56, 64, (), residual, True)
    assert plan.constexprs["WIDE"], "the residual alone passes"
    wide = dataclasses.replace(STRIDED, n=5_400)
    assert planning.plan_conv_dgrad(wide, "bfloat16", 90, ()).constexprs["WIDE"], "the gradient written alone passes"


@pytest.mark.parametrize(
    ("op", "with_"),
    [
        ("conv_stats", ("prologue",)),
        ("conv_dgrad", ("below", "skip_out")),
        ("conv_dgrad", ("block_sums", "skip", "skip_2")),
        ("conv_wgrad", ("prologue",)),
        ("conv1x1_backward", ("rectified", "skip_out", "skip_2")),
        ("bn_backward_apply", ()),
        ("gram", ("prologue",)),
        ("conv1x1_bn_add_act", ("residual",)),
        ("gram_products", ("out",)),
        ("gram_backward_finish", ("prologue",)),
        ("bn_relu_maxpool_backward", ()),
    ],
)
def test_64_bit_offsets_give_the_same_bits(op, with_, monkeypatch):
    window = 1 if "gram" in op or "1x1" in op else 3
    stride = 1 if op == "conv1x1_backward" else 2
    case = TrainingCase(op, ConvShape(2, 16, 7, 6, 24, window, window, stride, (window // 2, window // 2)), with_)
    narrow = getattr(backend, op)(**case.inputs(DEVICE))
    run, launched = launch.run, []

    def run_wide(plan, tensors):
        launched.append(plan.kernel)
        run(dataclasses.replace(plan, constexprs=plan.constexprs | {"WIDE": True}), tensors)

    monkeypatch.setattr(launch, "run", run_wide)
    wide = getattr(backend, op)(**case.inputs(DEVICE))
    narrow, wide = ((value if isinstance(value, tuple) else (value,)) for value in (narrow, wide))
    assert launched and all(torch.equal(one, other) for one, other in zip(narrow, wide, strict=True))


def test_a_smaller_part_has_fewer_loads_in_flight():
    stages = [planning.plan_conv_dgrad(THREE, "bfloat16", arch, ()).num_stages for arch in (90, 80, 86)]
    assert stages == sorted(stages, reverse=True) and stages[0] == 3 > stages[-1] >= 1


def test_dgrad_has_whole_tiles_for_each_phase():
    assert planning.dgrad_tiles(THREE) == 256 * 56 * 56 // 128
    assert planning.dgrad_tiles(STRIDED) == 4 * (256 * 28 * 28 // 128)
    assert planning.dgrad_tiles(ConvShape(1, 8, 5, 5, 8, 3, 3, (2, 2), (1, 1))) == 4


@pytest.mark.parametrize(
    ("dtype", "arch", "pixels", "extents"),
    [
        ("bfloat16", 90, 2**21, (128, 32)),
        ("bfloat16", 90, 2**24, (64, 32)),  # 64-bit offsets need more registers
        ("bfloat16", 80, 2**21, (64, 16)),  # mma takes its operands from registers
        ("tfloat32", 90, 2**21, (64, 32)),
    ],
)
def test_a_finish_is_as_wide_as_its_registers_allow(dtype, arch, pixels, extents):
    plan = planning.plan_gram_finish(pixels, 128, dtype, arch, ())
    assert (plan.constexprs["BLOCK_N"], plan.constexprs["BLOCK_K"]) == extents
    assert plan.constexprs["WIDE"] == (pixels * 128 >= 2**31)
    assert plan.grid == pixels // planning.STATISTICS_TILE * 128 // extents[0]
