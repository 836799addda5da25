"""Faults planted in conv1x1: every one that the emulation can see must be noticed."""

import pytest
import torch

from tests.kernels.conv1x1 import forward_calls as conv1x1_calls
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

TILES, SPLITS = "kernels/parts/pixel_tiles.cuh", "kernels/parts/split_products.cuh"
LOAD, MULTIPLY, EPILOGUE, STATISTICS, KERNEL = (
    f"kernels/conv1x1/forward/{part}.cuh" for part in ("load", "multiply", "epilogue", "statistics", "kernel")
)

# More slices than stages, so that every barrier is used twice; ragged in pixels, channels and filters.
ACT_CASES = [
    conv1x1_calls.Case(2, 13, 11, 584, 136, residual=True, blocks=1, weights_ready=True),
    conv1x1_calls.Case(2, 13, 11, 392, 72, prologue=True, residual=True, blocks=1, dtype=torch.float16),
    conv1x1_calls.Case(1, 29, 25, 72, 136, stride=2, blocks=1),
    conv1x1_calls.Case(1, 7, 7, 328, 72, splits=3, residual=True),
]
STATISTICS_CASE = conv1x1_calls.Case(3, 13, 11, 72, 136, blocks=1, offset=30)

FAULTS = [
    Fault(
        "swizzle forgotten",
        TILES,
        "swizzled(Swizzle::k128B, slice + pixel * kPixelBytes + chunk * 16)",
        "(slice + pixel * kPixelBytes + chunk * 16)",
    ),
    Fault("last column of a box lost", TILES, "at.column < columns", "at.column + 1 < columns"),
    Fault("stage not awaited", LOAD, "mbarrier_wait(V::empty(at.slot), at.parity ^ 1);", ""),
    Fault("strided rows taken for dense ones", LOAD, "work.pixels.row * problem.stride", "work.pixels.row"),
    Fault(
        "too few bytes expected",
        LOAD,
        "mbarrier_arrive_expect_tx(V::full(stage), V::kStageBytes);",
        "mbarrier_arrive_expect_tx(V::full(stage), 64);",
    ),
    Fault(
        "consumers do not take turns",
        MULTIPLY,
        "mbarrier_wait(V::may_multiply(consumer.index), (tile + (consumer.index == 0)) % 2);",
        "",
    ),
    Fault("turn not passed on", MULTIPLY, "pass_turn<V>(consumer);", ""),
    Fault(
        "stage freed while wgmma reads it",
        MULTIPLY,
        "wgmma_wait<1>();\n    release<V>(turn<V::kStages>(use - 1).slot);",
        "wgmma_wait<1>();\n    release<V>(turn<V::kStages>(use).slot);",
    ),
    Fault("last products not awaited", MULTIPLY, "wgmma_wait<0>();", ""),
    Fault("second 64 pixels are the first", MULTIPLY, "block * kRowBlockBytes + step * 32", "step * 32"),
    Fault("scale of other channels", MULTIPLY, "norm.scale[j / 2]", "norm.scale[j % 2]"),
    Fault("second half of a slice is the first", MULTIPLY, "half * kHalfSteps + i", "i"),
    Fault(
        "residual not awaited",
        EPILOGUE,
        "mbarrier_wait(V::residual_full(consumer.index), use % 2);",
        "consumer.sync();",
    ),
    Fault("output not visible to TMA", EPILOGUE, "fence_proxy_async();", ""),
    Fault(
        "output stored before all have written",
        EPILOGUE,
        "consumer.sync();\n    if (consumer.thread > 0) return;",
        "if (consumer.thread > 0) return;",
    ),
    Fault("output written while TMA stores it", EPILOGUE, "tma_store_wait_read();", ""),
    Fault(
        "first split finishes",
        SPLITS,
        "atomic_increment(arrivals) + 1 == uint32_t(splits)",
        "atomic_increment(arrivals) == 0",
    ),
    Fault("arrivals stay", SPLITS, "if (is_last) *arrivals = 0;", ""),
    Fault("a split's sums not left", EPILOGUE, "store_split<V>(d, arguments, work, consumer);", ""),
    Fault(
        "pixels outside of the map counted",
        STATISTICS,
        "bits |= uint32_t{tiles.inside(work.pixels, consumer.pixel(i / 2, i % 2))} << i;",
        "bits |= 1u << i;",
    ),
    Fault("warps' means taken for one", STATISTICS, "delta * delta * a_count * share", "0.0f"),
    Fault("moments merged before they are there", STATISTICS, "consumer.sync();", ""),
    Fault("no barrier after the set-up", KERNEL, "cta_sync();", ""),
    Fault(
        "stage empty after one warp",
        KERNEL,
        "mbarrier_init(V::empty(stage), kWarps);",
        "mbarrier_init(V::empty(stage), 1);",
    ),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("producer keeps its registers", KERNEL, "register_budget_decrease<24>();", ""),
    Fault("input loaded before the grid before has ended", LOAD, "wait_for_previous_grid();", ""),
    Fault(
        "output stored before the grid before has ended",
        KERNEL,
        "wait_for_previous_grid();\n        consume<V>(parameters, warpgroup - 1);",
        "consume<V>(parameters, warpgroup - 1);",
    ),
    Fault("weights loaded early without a promise", LOAD, "parameters.arguments.weights_ready", "true"),
    Fault("first weights loaded twice", LOAD, "use >= loaded", "use + 1 >= loaded"),
    Fault("weights behind the first not loaded", LOAD, "use >= loaded", "use > loaded"),
]
# Operands in registers are read when wgmma is issued, on a GPU until it is complete; memory is ordered as it is.
UNSEEN = [
    Fault(
        "fragments overwritten while wgmma reads them",
        MULTIPLY,
        "multiply_fragments<V>(d, second, advanced(filters, kHalfSteps * 32), true);\n        wgmma_wait<1>();",
        "multiply_fragments<V>(d, second, advanced(filters, kHalfSteps * 32), true);",
    ),
    Fault("no fence before a split arrives", SPLITS, "memory_fence_gpu();\n    consumer.sync();", "consumer.sync();"),
]


def _check_conv1x1(library):
    for case in ACT_CASES:
        conv1x1_calls.check_act(library, case)
    conv1x1_calls.check_stats(library, STATISTICS_CASE)


KERNEL_WITH_FAULTS = Kernel("kernels/conv1x1/forward/host.cpp", _check_conv1x1, FAULTS + UNSEEN, "-w")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert KERNEL_WITH_FAULTS.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert KERNEL_WITH_FAULTS.outcome(fault) == ""


def test_nothing_is_noticed_where_nothing_is_planted():
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(KERNEL_WITH_FAULTS.sound()) == {""}
