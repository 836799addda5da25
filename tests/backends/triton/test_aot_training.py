"""The training kernels compiled ahead of time, as `python -m benchmarks.kernels --mode training` reports them.

Of ResNet-50 at batch 256 in bfloat16, one of each class of kernels (`class_of`: up to 128 channels every shape, beyond
them one, since only trip counts change), and of ResNet-18 those with the most tensors of each tile and filter; that
command compiles every shape.  Needs no GPU, and runs in a subprocess without TRITON_INTERPRET: a process either
interprets its kernels or compiles them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.shared import once

pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA compiler is not installed")
MODELS = ["resnet18", "resnet50"]

# Where the products of a step are waited for before the next step's begin, and why that is so.
SERIAL = {
    "the stem's elements are loaded one by one, through registers": (
        lambda one: one["layer"] == "conv1" and one["kernel"] in ("conv_stats", "conv_wgrad")
    ),
    "both operands are transformed, and the right one goes through shared memory, which holds one step": (
        lambda one: (
            one["kernel"] == "conv_gram"
            or (one["kernel"] == "conv_wgrad" and one["layer"].endswith(("conv2", "conv3", "downsample")))
        )
    ),
    "dz goes through shared memory, which holds one step, and dx is finished and stored in its own step": (
        lambda one: one["kernel"] == "conv_backward_1x1"
    ),
}

_COMPILE = """
import dataclasses, json, sys
from benchmarks.kernels import compile_all, one_of_each_class, rows_of
rows = []
for arch, models, kernels, fullest in json.loads(sys.argv[1]):
    found = one_of_each_class(rows_of(models, arch, "bfloat16", modes=["training"]))
    found = [row for row in found if not kernels or row.plan.kernel in kernels]
    if fullest:
        found.sort(key=lambda row: sum(pointer is not None for pointer in row.plan.pointers.values()))
        found = {(row.plan.kernel, row.tile, row.plan.constexprs.get("R")): row for row in found}.values()
    rows += found
last = {row.plan.kernel: row for row in rows}
for row in (last[kernel] for kernel in sys.argv[2:]):
    plan = dataclasses.replace(row.plan, constexprs=row.plan.constexprs | {"WIDE": True})
    rows.append(dataclasses.replace(row, plan=plan, tile=row.tile + " wide"))
print(json.dumps(compile_all(rows, 2)))
"""


def compiled(*wanted: tuple[int, list[str], list[str], bool], wide: tuple[str, ...] = ()) -> list[dict]:
    """What each (architecture, models, kernels' names or none for all, fullest) compiles to; one of each kernel in
    `wide` once more, with 64-bit offsets.  `fullest`: of each tile and filter size the one with the most tensors."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE, json.dumps(wanted), *wide]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> list[dict]:
    wanted = ((90, ["resnet50"], [], False), (90, ["resnet18"], [], True))
    wide = ("conv_dgrad", "conv_backward_1x1")
    return once(tmp_path_factory, "training_sm_90", lambda: compiled(*wanted, wide=wide))


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> list[dict]:
    # the kernels whose tiles depend on the architecture
    both = ["conv_backward_1x1"]
    alone = ["conv_gram_finish", "conv_wgrad"]
    wanted = ((80, MODELS, both + alone, True), (100, MODELS, both, True))
    return once(tmp_path_factory, "training_others", lambda: compiled(*wanted))


def products_of(results: list[dict]) -> list[dict]:
    """The matrix kernels, but for the one that sums in float64 where a flag asks for it: rare, and plain."""
    return [one for one in results if one["kernel"].startswith("conv_") and one["kernel"] != "conv_gram_exact"]


def name(one: dict) -> str:
    return f"{one['kernel']} {one['tile']} of {one['model']} {one['layer']} on sm_{one['arch']}"


def spilling(results: list[dict]) -> list[str]:
    assert not [(name(one), one["error"]) for one in results if "error" in one]
    return [name(one) for one in results if one["spills"]]


def test_every_training_kernel_compiles_without_spills_on_sm_90(hopper):
    from fused_resnet.backends.triton.kernels import KERNELS

    inference = {"conv_pointer", "conv_runs", "conv_tma", "scale_shift_act", "option_a_shortcut"}
    assert {one["kernel"] for one in hopper} == set(KERNELS) - inference - {"max_pool", "global_avg_pool"}
    assert not spilling(hopper)


def test_every_product_reaches_wgmma_on_sm_90(hopper):
    products = products_of(hopper)
    assert len(products) > 50
    assert not [name(one) for one in products if one["matrix_opcode"] != "HGMMA"]


def test_steps_overlap_on_sm_90(hopper):
    products = products_of(hopper)
    overlapping = [one for one in products if not any(is_serial(one) for is_serial in SERIAL.values())]
    assert {one["kernel"] for one in overlapping} == {
        "conv_stats", "conv_bn_add_act", "conv_dgrad", "conv_wgrad", "conv_gram_finish",
    }  # fmt: skip
    assert not [name(one) for one in overlapping if not one["wait_depth"]]


def test_loads_are_on_their_way_while_a_step_is_computed_on_sm_90(hopper):
    products = products_of(hopper)
    synchronous = [name(one) for one in products if not one["async_copies"]]
    assert synchronous == [name(one) for one in products if one["layer"] == "conv1" and one["kernel"] == "conv_stats"]


def test_both_gradients_take_one_launch_at_every_shape_of_up_to_256_filters(hopper):
    found = {(one["model"], one["layer"]) for one in hopper if one["kernel"] == "conv_backward_1x1"}
    assert found == {
        ("resnet18", "layer2.0.downsample"), ("resnet18", "layer3.0.downsample"),
        ("resnet50", "layer1.0.conv1"), ("resnet50", "layer1.0.downsample"), ("resnet50", "layer1.0.conv3"),
        ("resnet50", "layer1.1.conv1"), ("resnet50", "layer2.0.conv1"), ("resnet50", "layer2.1.conv1"),
        ("resnet50", "layer3.0.conv1"), ("resnet50", "layer3.1.conv1"),
    }  # fmt: skip


@pytest.mark.parametrize(("arch", "opcode"), [(80, "HMMA"), (100, "UTCHMMA")])
def test_other_architectures_reach_their_tensor_cores_without_spills(others, arch, opcode):
    results = [one for one in others if one["arch"] == arch]
    assert len(results) >= 6 and not spilling(results)
    assert not [name(one) for one in results if one["matrix_opcode"] != opcode]
