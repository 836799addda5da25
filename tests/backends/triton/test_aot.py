"""The Triton kernels compiled ahead of time, as `python -m benchmarks.kernels` reports them; needs no GPU.

In subprocesses without TRITON_INTERPRET: a process either interprets its kernels or compiles them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.shared import once

pytest.importorskip("triton.backends.nvidia", reason="Triton's NVIDIA compiler is not installed")
CONVOLUTIONS = ("conv_pointer", "conv_runs", "conv_tma")


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def report(path: Path, *arguments: str) -> list[dict]:
    """One of each class of kernels, as the JSON report has them; the command has exited with 0."""
    result = python("-m", "benchmarks.kernels", "--classes", "--json", str(path), *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(path.read_text())["kernels"]


def name(kernel: dict) -> str:
    return f"{kernel['kernel']} of {kernel['model']} {kernel['layer']} on sm_{kernel['arch']}"


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> list[dict]:
    path = tmp_path_factory.mktemp("aot") / "sm_90.json"
    return once(tmp_path_factory, "inference_sm_90", lambda: report(path, "--arch", "90"))


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> list[dict]:
    path = tmp_path_factory.mktemp("aot") / "others.json"
    arguments = ("--arch", "80", "100", "--model", "resnet18")
    return once(tmp_path_factory, "inference_others", lambda: report(path, *arguments))


def test_no_kernel_spills_on_sm_90(hopper):
    spilled = [name(one) for one in hopper if one["local_bytes"] or one["spill_loads"] or one["spill_stores"]]
    assert not spilled


def test_every_convolution_reaches_wgmma_on_sm_90(hopper):
    convs = [one for one in hopper if one["kernel"] in CONVOLUTIONS]
    assert {one["kernel"] for one in convs} == set(CONVOLUTIONS)
    assert {one["layer"] for one in convs} >= {"conv1", "layer1.0.conv2", "layer3.0.downsample"}
    assert not [name(one) for one in convs if one["matrix_opcode"] != "HGMMA"]


def test_loads_overlap_wgmma_on_sm_90(hopper):
    # the stem's elements are loaded one by one, through registers, which Triton does not pipeline
    pipelined = [one for one in hopper if one["kernel"] in ("conv_pointer", "conv_tma")]
    assert not [name(one) for one in pipelined if one["wait_depth"] != 1]
    assert not [name(one) for one in hopper if one["kernel"] == "conv_tma" and one["tma_instructions"] < 4]
    assert not [name(one) for one in hopper if one["kernel"] == "conv_pointer" and not one["async_copies"]]


def test_two_blocks_fit_on_a_multiprocessor_of_sm_90(hopper):
    # 64 Ki registers and 228 KiB of shared memory, of which each block costs 1 KiB more than it asks for
    tight = []
    for one in hopper:
        if one["kernel"] in ("conv_pointer", "conv_tma"):
            threads = 32 * int(one["tile"].split(" w")[1].split()[0])
            registers = -(-one["registers"] // 8) * 8
            if 2 * threads * registers > 65536 or 2 * (one["shared_bytes"] + 1024) > 228 * 1024:
                tight.append(name(one))
    assert not tight


@pytest.mark.parametrize(("arch", "opcode"), [(80, "HMMA"), (100, "UTCHMMA")])
def test_other_architectures_reach_their_tensor_cores_without_spills(others, arch, opcode):
    convs = [one for one in others if one["arch"] == arch and one["kernel"] in CONVOLUTIONS]
    assert len(convs) > 8
    assert not [name(one) for one in convs if one["matrix_opcode"] != opcode]
    assert not [name(one) for one in others if one["local_bytes"] or one["spill_loads"] or one["spill_stores"]]


def is_unrolled(kernel: dict) -> bool:
    """Whether a 3x3 convolution on sm_80 holds the products of every step one after the other, in no loop."""
    extents, warps = kernel["tile"].split()[:2]
    block_m, block_n, block_k = map(int, extents.split("x"))
    channels = int(re.search(r"_c(\d+)_", kernel["shape"])[1])
    of_each_step = block_m * block_n * block_k // (16 * 8 * 16) // int(warps.removeprefix("w"))
    return kernel["arch"] == 80 and kernel["matrix_instructions"] == 9 * -(-channels // block_k) * of_each_step


def test_the_main_loop_is_found_on_every_architecture(hopper, others):
    deep = [
        one for one in hopper + others if one["kernel"] in ("conv_pointer", "conv_tma") and "_r3x3_" in one["shape"]
    ]
    # the ptxas of triton 3.6 leaves no loop of 18 steps on sm_80
    looping = [one for one in deep if not is_unrolled(one)]
    assert {one["arch"] for one in looping} == {80, 90, 100}
    assert not [name(one) for one in looping if not 50 < one["loop_instructions"] < 400]


def test_interpreted_kernels_are_refused():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.kernels"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and "unset it" in result.stderr


WIDE = """
from dataclasses import replace
from benchmarks.meters import aot
from fused_resnet.backends.triton import plan
from fused_resnet.shapes import ConvShape
from fused_resnet.tuning import Choice, TileConfig
shape = ConvShape(256, 64, 56, 56, 64, 3, 3, (1, 1), (1, 1))
for algorithm in ("implicit_gemm", "implicit_gemm_tma"):
    choice = Choice(algorithm, TileConfig(128, 64, 64, num_warps=4, num_stages=3))
    for images in (256, 20_000):
        launch = plan.plan_conv(replace(shape, n=images), "bfloat16", 90, choice, plan.Epilogue())
        compiled = aot.compile_plan(launch, 90)
        assert not aot.resources_of(compiled).spills
        print(sum("tt.addptr" in line and "xi64>" in line for line in compiled.asm["ttir"].splitlines()))
"""


def test_addresses_are_64_bit_where_a_map_passes_2_to_the_31():
    result = python("-c", WIDE)
    assert result.returncode == 0, result.stderr
    small, large, small_tma, large_tma = map(int, result.stdout.split())
    assert small == small_tma == 0 and large > 1 and large_tma > 0


SPECIALISED = """
import inspect
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import MockTensor, create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor
from benchmarks import kernels
from benchmarks.meters import aot
from fused_resnet.backends.triton.kernels import KERNELS

for row in kernels.rows_of(["resnet18"], 90, "bfloat16"):
    kernel, plan = KERNELS[row.plan.kernel], row.plan
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(GPUTarget("cuda", 90, 32)))
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    given = {n: None if t is None else MockTensor(types[t]) for n, t in plan.pointers.items()}
    for n, box in plan.boxes.items():
        base = torch.empty(64, dtype=torch.bfloat16)
        given[n] = TensorDescriptor(base, list(box.shape), list(box.strides), list(box.block))
    _, specialised, _ = binder(**given, **plan.scalars, **plan.constexprs)
    signature, constants, attributes = aot.signature_of(plan, kernel)
    for position, (name, (kind, detail)) in enumerate(zip(kernel.arg_names, specialised)):
        assert kind == signature[name].replace(", ", ",") or kind == signature[name], (name, kind, signature[name])
        aligned = (position,) in attributes
        assert aligned == (detail == "D" and kind != "constexpr"), (name, kind, detail)
    print(plan.kernel)
"""


def test_what_is_compiled_is_what_the_launcher_would_specialise():
    result = python("-c", SPECIALISED)
    assert result.returncode == 0, result.stderr[-2000:]
    assert set(result.stdout.split()) >= {*CONVOLUTIONS, "scale_shift_act", "max_pool", "global_avg_pool"}
