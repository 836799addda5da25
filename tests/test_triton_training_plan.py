"""What the Triton training ops decide before they launch, and that their kernels compile to wgmma without spills."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_resnet.backends import triton as backend
from fused_resnet.backends.triton import training_plan as planning
from fused_resnet.shapes import ConvShape

from .training_cases import TrainingCase

pytest.importorskip("triton", reason="triton is not installed")
launch = pytest.importorskip("fused_resnet.backends.triton.launch")

ROOT = Path(__file__).parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREE = ConvShape(256, 64, 56, 56, 64, 3, 3, (1, 1), (1, 1))
STRIDED = ConvShape(256, 128, 56, 56, 128, 3, 3, (2, 2), (1, 1))


@given(st.integers(1, 10**7), st.integers(1, 400), st.sampled_from(["bfloat16", "float32", "tfloat32"]))
def test_a_split_covers_every_pixel_once(pixels, tiles, dtype):
    split = planning.split_of(pixels, tiles, dtype)
    of_each = split.steps * split.block_k
    assert split.splits * of_each >= pixels > (split.splits - 1) * of_each
    assert split.splits * tiles <= max(tiles, 2 * planning._SPLIT_PROGRAMS)


def _plans(shape: ConvShape, dtype: str = "bfloat16"):
    pixels, k = shape.gemm_m, shape.k
    yield planning.plan_conv_stats(shape, dtype, 90, ())
    yield planning.plan_conv_dgrad(shape, dtype, 90, ())
    yield planning.plan_conv_wgrad(shape, dtype, 90, ())[0]
    yield planning.plan_rows("channel_stats", pixels, k, ())
    yield planning.plan_gram_finish(pixels, k, dtype, 90, ())
    yield planning.plan_bn_add_act(shape.n, shape.p, shape.q, k, (), None, True)
    yield planning.plan_bn_pool(shape.n, shape.p, shape.q, k, (3, 2, 1), (), False)
    yield planning.plan_bn_pool(shape.n, shape.p, shape.q, k, (3, 2, 1), (), True)
    one = dataclasses.replace(shape, r=1, s=1, padding=(0, 0))
    yield planning.plan_gram(planning.input_of(one), dtype, 90, ())[0]
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
        ("conv_wgrad", ("prologue",)),
        ("gram", ("prologue",)),
        ("conv1x1_bn_add_act", ("residual",)),
        ("gram_products", ("out",)),
        ("gram_backward_finish", ("prologue",)),
        ("bn_relu_maxpool_backward", ()),
    ],
)
def test_64_bit_offsets_give_the_same_bits(op, with_, monkeypatch):
    window = 1 if "gram" in op or "1x1" in op else 3
    case = TrainingCase(op, ConvShape(2, 16, 7, 6, 24, window, window, (2, 2), (window // 2, window // 2)), with_)
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


_COMPILE = """
import dataclasses, json
from benchmarks.kernels import compile_row, rows_of
rows = rows_of(["resnet50"], 90, "bfloat16", modes=["training"])
rows = {row.plan.kernel: row for row in rows if row.plan.kernel.startswith("conv_")}
wide = rows["conv_dgrad"]
plan = dataclasses.replace(wide.plan, constexprs=wide.plan.constexprs | {"WIDE": True})
print(json.dumps([compile_row(row) for row in (*rows.values(), dataclasses.replace(wide, plan=plan))]))
"""


def test_kernels_reach_wgmma_on_sm_90_without_spills():
    # one shape a kernel; `python -m benchmarks.kernels --mode training` compiles them all
    pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA compiler is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)
    assert not [one for one in compiled if "error" in one or one["spills"]]
    assert len({one["kernel"] for one in compiled}) == 6
    assert not [one for one in compiled if one["matrix_opcode"] != "HGMMA"]
