"""Programmatic dependent launch: the emulator's rules, which kernels are launched so, and what their machine code has.

That each of these kernels waits before it touches global memory is checked wherever one is emulated: see the tests of
the kernels and the faults planted in them.
"""

from __future__ import annotations

import ctypes
import functools
import re

import pytest
import torch

import fused_resnet
from benchmarks.meters import cuda_kernels
from fused_resnet import ops
from fused_resnet.backends.cuda import availability, conv1x1, inference, launch
from fused_resnet.backends.promises import constant_weights
from fused_resnet.frozen import graphs
from tests.kernels.bottleneck import calls as bottleneck_inference_calls
from tests.kernels.conv1x1 import forward_calls as conv1x1_calls
from tests.kernels.conv3x3 import forward_calls as conv3x3_halo_calls
from tests.support import emulated
from tests.support.emulated_extension import EmulatedExtension, install
from tests.support.shared import once

TOUCHES = ("TMA load", "TMA store", "load", "load of a pair", "ordered load", "store", "atomic")
INCLUDE = re.compile(r'#include "(kernels/[\w/]+\.cuh)"')


# ---- the emulator's rules ----


def said(how: str, waiting: int, dependent: bool = True) -> str:
    """What the emulator says of a kernel in which thread 0 touches global memory, and thread `waiting` has waited."""
    function = emulated.library("emulation/checks/dependent.cpp").check_dependent
    function.restype = ctypes.c_char_p
    return (function(how.encode(), waiting, dependent) or b"").decode()


@emulated.needs_compiler
@pytest.mark.parametrize("how", TOUCHES)
def test_global_memory_is_touched_after_the_wait(how):
    assert "before wait_for_previous_grid: the grid before may still use" in said(how, waiting=-1)
    assert "before wait_for_previous_grid" in said(how, waiting=1), "another thread's wait is not the thread's own"
    assert said(how, waiting=0) == said(how, waiting=-1, dependent=False) == ""


@emulated.needs_compiler
def test_what_no_kernel_writes_may_be_loaded_before_the_wait():
    assert said("TMA load of a constant", waiting=1) == ""


@emulated.needs_compiler
def test_a_compiler_may_move_read_only_loads_ahead_of_the_wait():
    assert "read-only load in a kernel that was launched as a dependent one" in said("read-only load", waiting=0)
    assert said("read-only load", waiting=0, dependent=False) == ""


@emulated.needs_compiler
def test_a_grid_does_not_end_before_the_one_before_it():
    assert "block 0 never calls wait_for_previous_grid" in said("nothing", waiting=-1)
    assert said("nothing", waiting=31) == ""


# ---- the sources ----


def dependents() -> dict[str, str]:
    """The kernels that launchers pass to run_dependent, each with the launcher's source."""
    found = {}
    for source in sorted((emulated.CSRC / "kernels").rglob("*.cu")):
        text = source.read_text()
        for argument in re.findall(r"run_dependent<\w+>\(\s*call,\s*([\w:]+)", text):
            named = re.search(rf"auto {argument} =\s*([\w:]+)<", text)
            found[(named[1] if named else argument).rpartition(":")[2]] = str(source.relative_to(emulated.CSRC))
    return found


def reachable(source: str) -> str:
    """The sources of csrc/kernels that a launcher includes, one after the other."""
    texts, pending = {}, INCLUDE.findall((emulated.CSRC / source).read_text())
    while pending:
        name = pending.pop()
        if name not in texts:
            texts[name] = (emulated.CSRC / name).read_text()
            pending += INCLUDE.findall(texts[name])
    return "".join(texts.values())


def test_the_kernels_of_inference_are_launched_as_dependent_ones():
    expected = {"conv1x1_kernel", "conv3x3_halo_kernel", "bottleneck_inference_kernel", "global_avg_pool"}
    assert expected <= set(dependents())


@pytest.mark.parametrize("kernel", dependents())
def test_who_is_launched_so_waits(kernel):
    text = reachable(dependents()[kernel])
    assert f" {kernel}(" in text, f"{kernel} stands in no source that {dependents()[kernel]} includes"
    assert "wait_for_previous_grid();" in text and "launch_next_grid();" in text


# ---- the machine code ----


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    if availability.extension() is None:
        pytest.skip("fused_resnet._C was not compiled: no nvcc when the package was installed")
    if cuda_kernels.disassembler() is None:
        pytest.skip("there is no cuobjdump: neither a CUDA toolkit's nor triton's")
    found = once(tmp_path_factory, "cuda_kernels", lambda: cuda_kernels.results((80, 90)))
    return [row for row in found if row["kernel"] in dependents()]


def test_the_machine_code_waits_and_triggers_and_reads_nothing_ahead(rows):
    for row in rows:
        name = f"sm_{row['arch']} {row['kernel']} {row['tile']}"
        present = row["arch"] >= 90
        assert (row["ACQBULK"] > 0) == present and (row["PREEXIT"] > 0) == present, name
        assert not present or row["read_only_loads"] == 0, f"{name} has loads that may be moved ahead of its wait"


# ---- weights that are loaded before the wait ----


@emulated.needs_compiler
@pytest.mark.parametrize(
    "case",
    [
        conv1x1_calls.Case(1, 7, 7, 584, 136, residual=True, weights_ready=True, seed=3),
        conv1x1_calls.Case(2, 13, 11, 72, 200, blocks=3, weights_ready=True, dtype=torch.float16),
        conv1x1_calls.Case(1, 7, 7, 328, 72, splits=3, residual=True, weights_ready=True, seed=5),
    ],
    ids=str,
)
def test_conv1x1_with_weights_that_are_ready(case):
    conv1x1_calls.check_act(emulated.library("kernels/conv1x1/forward/host.cpp"), case)


@emulated.needs_compiler
@pytest.mark.parametrize("channels", [64, 128])
def test_conv3x3_halo_with_weights_that_are_ready(channels):
    conv3x3_halo_calls.check(
        conv3x3_halo_calls.Case(
            channels, 1, 2, 20, 12, prologue="", epilogue="act", residual=True, weights_ready=True, seed=3
        )
    )


@emulated.needs_compiler
@pytest.mark.parametrize("channels", [64, 128])
def test_bottleneck_inference_with_weights_that_are_ready(channels):
    case = bottleneck_inference_calls.Case(1, 17, 16, channels, weights_ready=True, blocks=1, seed=3)
    bottleneck_inference_calls.check(emulated.library("kernels/bottleneck/host.cpp"), case)


@emulated.needs_compiler
@pytest.mark.parametrize("size", [1, 3])
def test_the_promise_reaches_the_kernel_and_changes_no_bit(size, monkeypatch):
    install(monkeypatch, EmulatedExtension())
    promised = []
    launched = launch.run
    for module in (inference, conv1x1):
        monkeypatch.setattr(module, "run", lambda *arguments: promised.append(arguments[-1]) or launched(*arguments))
    x, weight = (
        torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)
        for shape in ((1, 64, 9, 7), (64, 64, size, size))
    )
    call = functools.partial(inference.conv_scale_shift_act, x, weight, padding=(size // 2,) * 2)
    alone = call()
    with constant_weights():
        early = call()
    assert promised == [False, True] and torch.equal(alone, early)


def test_only_what_is_promised_and_lies_dense_is_ready():
    dense = torch.randn(8, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    assert not launch.weights_ready(dense)
    with constant_weights():
        assert launch.weights_ready(dense, None) and not launch.weights_ready(dense, dense.contiguous())
    assert not launch.weights_ready(dense)


# ---- on a device ----


def one_at_a_time(monkeypatch) -> None:
    """From here on every launch has ended before the next one."""
    launched = launch.run

    def run_alone(*arguments) -> None:
        launched(*arguments)
        torch.cuda.synchronize()

    for module in (inference, conv1x1):
        monkeypatch.setattr(module, "run", run_alone)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 16])
def test_launches_that_overlap_give_the_bits_of_launches_one_at_a_time(n, monkeypatch):
    """All blocks of a frozen ResNet-50, back to back and in a graph, whose kernels load their weights early."""
    reason = availability.unavailable_reason()
    if reason is None and torch.cuda.get_device_capability() != (9, 0):
        reason = "the convolutions' kernels run on compute capability 9.0 alone"
    if reason is not None:
        pytest.skip(reason)
    model = fused_resnet.resnet50().eval().cuda().bfloat16()
    blocks = [
        fused_resnet.freeze(block)
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4)
        for block in stage
    ]

    def chain(x: torch.Tensor) -> torch.Tensor:
        for block in blocks:
            x = block(x)
        return ops.global_avg_pool(x)

    x = torch.randn(n, 64, 56, 56, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    with fused_resnet.use_backend("cuda"), torch.no_grad():
        replayed = graphs.Graphs(chain)
        results = [function(x) for function in (chain, replayed) for _ in range(5)]
        one_at_a_time(monkeypatch)
        alone = chain(x)
    assert alone.isfinite().all()
    assert all(torch.equal(result, alone) for result in results)
