"""Faults planted in conv1x1_backward: every one that the emulation can see must be noticed.

The prologue that it shares with conv1x1_dgrad has its own in test_gradient_faults.py.
"""

import pytest

from tests.kernels.conv1x1.backward_calls import check, check_infinite_constant
from tests.kernels.conv1x1.gradient_calls import Case
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PLAN, LOAD, MULTIPLY, EPILOGUE, KERNEL = (
    f"kernels/conv1x1/backward/{part}.cuh" for part in ("plan", "load", "multiply", "epilogue", "kernel")
)
LAUNCH = "kernels/conv1x1/backward/launch.cu"
PUT = "if (consumer.index == 1) put_products<V>(dw, consumer.thread);"

# More tiles than stages, every number of slices and of maps, ragged in pixels, channels and filters.
CASES = [
    Case(2, 13, 11, 200, 56, ("skip_out", "rectified")),
    Case(2, 13, 11, 72, 40, ("skip",), blocks=1, seed=2),
    Case(1, 13, 11, 256, 64, ("constant", "rectified"), blocks=1, seed=3),
]

FAULTS = [
    # ---- loads ----
    Fault("weights' bytes of all slices", LOAD, "slices * V::kWeightSliceBytes", "kMaxSlices * V::kWeightSliceBytes"),
    Fault(
        "weights of the first channels",
        LOAD,
        "tma_load_4d(V::weights(slice), parameters.weight, V::weights_full(), slice * kSliceChannels, 0, 0, 0);",
        "tma_load_4d(V::weights(slice), parameters.weight, V::weights_full(), 0, 0, 0, 0);",
    ),
    Fault("z's bytes expected where there is none", LOAD, "has_z ? 2 * kSliceBytes : kSliceBytes", "2 * kSliceBytes"),
    Fault("g overwritten before it was read", LOAD, "mbarrier_wait(V::gradient_empty(), turn<1>(use).parity ^ 1);", ""),
    Fault("stage overwritten before it is empty", LOAD, "mbarrier_wait(V::empty(at.slot), at.parity ^ 1);", ""),
    Fault("maps' bytes not expected", LOAD, "arguments.stage_maps() * kSliceBytes", "kSliceBytes"),
    Fault(
        "x of the first channels",
        LOAD,
        "load_stage<V>(parameters, box, channel, turn<V::kStages>(use));",
        "load_stage<V>(parameters, box, 0, turn<V::kStages>(use));",
    ),
    Fault("dx stored before it is finished", LOAD, "mbarrier_wait(V::finished(at.slot), at.parity);", ""),
    Fault(
        "dx of the first channels",
        LOAD,
        "tma_store_4d(parameters.dx, V::x(at.slot), channel, box.column, box.row, box.image);",
        "tma_store_4d(parameters.dx, V::x(at.slot), 0, box.column, box.row, box.image);",
    ),
    Fault("stage given back while TMA stores it", LOAD, "tma_store_wait_read();", ""),
    Fault("weights of the slices overlap", PLAN, "slice * kWeightSliceBytes", "0"),
    Fault(
        "box of half the filters",
        LAUNCH,
        "matrix_shape(arguments.filters, arguments.channels, kSliceChannels)",
        "matrix_shape(arguments.filters, arguments.channels, kSliceChannels / 2)",
    ),
    # ---- dz ----
    Fault("coefficients of the first filters", MULTIPLY, "consumer.thread % kFilterChunks * kChunkChannels", "0"),
    Fault("filters that do not exist have some", MULTIPLY, "filter >= arguments.filters", "false"),
    Fault("first pair's coefficients", MULTIPLY, "vector.value[2 * i]", "vector.value[0]"),
    Fault("pixels that do not exist have a gradient", MULTIPLY, "arguments.tiles.inside(box, pixel)", "true"),
    Fault(
        "both consumers have the first pixels' dz",
        MULTIPLY,
        "consumer.index * kConsumerPixels + i * kRows",
        "i * kRows",
    ),
    Fault("z forgotten", MULTIPLY, "z = load_shared<Chunk>(chunk_address(V::z(), pixel, chunk));", ""),
    Fault("g not awaited", KERNEL, "mbarrier_wait(V::gradient_full(), turn<1>(tile_use).parity);", ""),
    Fault("g given back before it was read", KERNEL, "warp_sync();", ""),
    Fault(
        "dz not visible to wgmma",
        KERNEL,
        "fence_proxy_async();\n        arrive_as_warp(V::gradient_empty());",
        "arrive_as_warp(V::gradient_empty());",
    ),
    Fault("multiplied before all of dz is made", KERNEL, "        consumer.sync();", ";"),
    # ---- multiply ----
    Fault("weights not awaited", KERNEL, "mbarrier_wait(V::weights_full(), 0);", ""),
    Fault("stage not awaited", KERNEL, "mbarrier_wait(V::full(at.slot), at.parity);", ""),
    Fault("filters of the first step", MULTIPLY, "advanced(dz, step * 32)", "dz"),
    Fault("weights of the first step", MULTIPLY, "advanced(weights, step * kStepRowsBytes)", "weights"),
    Fault("dz's pixels of the first step", MULTIPLY, "advanced(dz, step * kStepRowsBytes)", "dz"),
    Fault("x's pixels of the first step", MULTIPLY, "advanced(x, step * kStepRowsBytes)", "x"),
    Fault("x of the first consumer's pixels", MULTIPLY, "V::x(stage) + first_pixel", "V::x(stage)"),
    Fault("dz of the first consumer's pixels", MULTIPLY, "V::dz() + first_pixel", "V::dz()"),
    Fault("products not awaited", MULTIPLY, "wgmma_wait<0>();", ""),
    Fault("no fence before wgmma", MULTIPLY, "wgmma_fence();", ""),
    # ---- dx ----
    Fault(
        "x overwritten while wgmma reads it",
        KERNEL,
        "multiply_slice<V>(dx, dw, slice, at.slot, consumer);\n    consumer.sync();",
        "multiply_slice<V>(dx, dw, slice, at.slot, consumer);",
    ),
    Fault(
        "dx not visible to TMA",
        KERNEL,
        "fence_proxy_async();\n    arrive_as_warp(V::finished(at.slot));",
        "arrive_as_warp(V::finished(at.slot));",
    ),
    Fault("skip's mask forgotten", EPILOGUE, "!arguments.has_skip_out || !(skip_out.value[j] <= 0.0f)", "true"),
    Fault("skip forgotten", EPILOGUE, "skips ? skip.value[j] : 0.0f", "0.0f"),
    Fault(
        "masked where x is no output of a ReLU",
        EPILOGUE,
        "arguments.rectified && x.value[j] <= 0.0f",
        "x.value[j] <= 0.0f",
    ),
    Fault("mask forgotten", LAUNCH, "arguments.rectified = rectified;", "arguments.rectified = false;"),
    Fault(
        "both consumers finish the first pixels",
        EPILOGUE,
        "consumer.index * kConsumerPixels + consumer.warp * 16",
        "consumer.warp * 16",
    ),
    Fault("rows of dx swapped", EPILOGUE, "d[channel / 2 + 2 * i]", "d[channel / 2 + 2 * (i ^ 1)]"),
    # ---- dW ----
    Fault(
        "products put where the weights still are read",
        EPILOGUE,
        f"sync();  // nothing is multiplied or loaded any more\n    {PUT}",
        PUT,
    ),
    Fault("second consumer's products dropped", EPILOGUE, "add_products<V>(dw, consumer.thread);", ""),
    Fault(
        "added before they are there",
        EPILOGUE,
        "    sync();\n    if (consumer.index == 1) return;",
        "    if (consumer.index == 1) return;",
    ),
    Fault(
        "every block writes the first row",
        EPILOGUE,
        "int64_t{block_index()} * arguments.filters",
        "0 * arguments.filters",
    ),
    Fault("rows of a product swapped", EPILOGUE, "i / 2 % 2 * 8", "i % 2 * 8"),
    Fault(
        "channels that do not exist written",
        EPILOGUE,
        "filter >= arguments.filters || channel >= arguments.channels",
        "filter >= arguments.filters",
    ),
    # ---- roles ----
    Fault(
        "stage finished by one consumer",
        KERNEL,
        "mbarrier_init(V::finished(stage), kConsumerWarps);",
        "mbarrier_init(V::finished(stage), kWarps);",
    ),
    Fault(
        "g given back by one consumer",
        KERNEL,
        "mbarrier_init(V::gradient_empty(), kConsumerWarps);",
        "mbarrier_init(V::gradient_empty(), kWarps);",
    ),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("no barrier after the set-up", KERNEL, "cta_sync();", ""),
    Fault("loader keeps its registers", KERNEL, "register_budget_decrease<24>();", ""),
]


def _check(library):
    for case in CASES:
        check(library, case)
    check_infinite_constant(library)


KERNEL_WITH_FAULTS = Kernel("kernels/conv1x1/backward/host.cpp", _check, FAULTS, "-w")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert KERNEL_WITH_FAULTS.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


def test_nothing_is_noticed_where_nothing_is_planted():
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(KERNEL_WITH_FAULTS.sound()) == {""}
