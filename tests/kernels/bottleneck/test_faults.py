"""Faults planted in bottleneck_inference: every one that the emulation can see must be noticed by one of its cases."""

import functools

import pytest
import torch

from tests.kernels.bottleneck.calls import Case, assert_rounded, draw, expected, moved_bytes, run
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PLAN, LOAD, MULTIPLY, EPILOGUE, KERNEL = (
    f"kernels/bottleneck/{part}.cuh" for part in ("plan", "load", "multiply", "epilogue", "kernel")
)

# Weights that stay, and weights that are streamed; both shortcuts, both strides; several tiles a block.
CASES = [
    Case(2, 16, 9, 64, blocks=1, seed=1),
    Case(1, 17, 17, 64, 64, blocks=1, seed=2),
    Case(2, 8, 15, 128, blocks=1, seed=3),
    Case(1, 15, 17, 128, 128, 2, blocks=1, seed=4),
]

FAULTS = [
    # ---- geometry ----
    Fault(
        "rows and columns of a tap swapped",
        PLAN,
        "row * kRowPixels + (kStride == 1 ? column : column == 1 ? kOddPixels : column / 2)",
        "column * kRowPixels + (kStride == 1 ? row : row == 1 ? kOddPixels : row / 2)",
    ),
    Fault(
        "column of the wrong parity",
        PLAN,
        "column == 1 ? kOddPixels : column / 2",
        "column == 1 ? kOddPixels : column",
    ),
    Fault("halo one column to the right", LOAD, "P::kStride * tile.column - 1", "P::kStride * tile.column"),
    Fault("shortcut's rows one too high", LOAD, "P::kStride * lane_index() + 1", "P::kStride * lane_index()"),
    Fault(
        "groups of pixels too close",
        MULTIPLY,
        "pixel_matrix(halo + first * kPixelBytes, P::kGroupBytes)",
        "pixel_matrix(halo + first * kPixelBytes, kAtomBytes)",
    ),
    Fault(
        "shortcut of the wrong tap",
        MULTIPLY,
        "tap_matrix<P>(P::input(turn<P::kInputSlots>(first_use + slice).slot), kCenterTap, consumer)",
        "tap_matrix<P>(P::input(turn<P::kInputSlots>(first_use + slice).slot), 0, consumer)",
    ),
    # ---- loads ----
    Fault("slot not awaited", LOAD, "mbarrier_wait(P::input_empty(at.slot), at.parity ^ 1);", ""),
    Fault("input overwrites W2 before it is in registers", LOAD, "mbarrier_wait(P::slots_ready(), 0);", ""),
    Fault("strided pixels overwritten", LOAD, "mbarrier_wait(P::strided_empty(), tiles % 2 ^ 1);", ""),
    Fault(
        "too few bytes expected",
        LOAD,
        "mbarrier_arrive_expect_tx(P::input_full(slot), P::kHaloPixels * kPixelBytes);",
        "mbarrier_arrive_expect_tx(P::input_full(slot), P::kRowPixels * kPixelBytes);",
    ),
    Fault("both consumers have the same filters", LOAD, "filter + part * kFilterTile", "filter"),
    Fault("stage of weights not awaited", LOAD, "mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);", ""),
    Fault(
        "halo loaded before the grid before has ended",
        LOAD,
        "wait_for_previous_grid();\n        load_inputs<P>(parameters);",
        "load_inputs<P>(parameters);\n        wait_for_previous_grid();",
    ),
    Fault(
        "weights loaded early without a promise",
        LOAD,
        "if (!parameters.arguments.weights_ready) wait_for_previous_grid();",
        "",
    ),
    Fault("output stored before the grid before has ended", KERNEL, "wait_for_previous_grid();", ""),
    # ---- products ----
    Fault("weights not awaited", MULTIPLY, "mbarrier_wait(P::weights_full(at.slot), at.parity);", ""),
    Fault("halo not awaited", MULTIPLY, "mbarrier_wait(P::input_full(at.slot), at.parity);", ""),
    Fault(
        "slot freed while wgmma reads it",
        MULTIPLY,
        "release(P::input_empty(turn<P::kInputSlots>(first_use + slice - 1).slot));",
        "release(P::input_empty(turn<P::kInputSlots>(first_use + slice).slot));",
    ),
    Fault("products not awaited", MULTIPLY, "wgmma_wait<kInFlight>();", ""),
    Fault(
        "second consumer has the first's pixels",
        MULTIPLY,
        "consumer.pixel_part * (P::kGroups / P::kPixelParts) * P::kGroupPixels",
        "0",
    ),
    Fault("sums do not begin with zero", MULTIPLY, "for (int i = 0; i < kCount; ++i) d[i] = 0;", ""),
    # ---- epilogues ----
    Fault(
        "swizzle forgotten",
        EPILOGUE,
        "swizzled(Swizzle::k128B, lane + group * group_bytes)",
        "(lane + group * group_bytes)",
    ),
    Fault("padding holds relu(shift)", EPILOGUE, "inside.mask(pair + group * kGroup)", "0xFFFFFFFFu"),
    Fault("halves of a mask mixed up", EPILOGUE, "(low ? 0x0000FFFFu : 0u)", "(high ? 0x0000FFFFu : 0u)"),
    Fault("blank row is a row of the image", EPILOGUE, "at.row < problem.height", "at.row <= problem.height"),
    Fault(
        "half of the residual dropped",
        EPILOGUE,
        "normalized(pair[1], norm, half) + residual.value[1]",
        "normalized(pair[1], norm, half)",
    ),
    Fault(
        "shortcut with the other norm",
        EPILOGUE,
        "normalized(shortcut[i], shortcut_norm, half)",
        "normalized(shortcut[i], norm, half)",
    ),
    Fault(
        "staged output overwritten while it is stored",
        EPILOGUE,
        "if (consumer.thread == 0) tma_store_wait_read();",
        "",
    ),
    Fault("last row of a part not stored", EPILOGUE, "row < P::kPartRows", "row < P::kPartRows - 1"),
    Fault(
        "output not visible to TMA",
        EPILOGUE,
        "fence_proxy_async();\n    consumer.sync();\n"
        "    if (consumer.thread == 0) "
        "store_rows<P>(parameters, consumer, tile, first_channel, pixels, P::kRowPixels);",
        "consumer.sync();\n"
        "    if (consumer.thread == 0) "
        "store_rows<P>(parameters, consumer, tile, first_channel, pixels, P::kRowPixels);",
    ),
    # ---- the order of the phases ----
    Fault(
        "y1 overwritten while it is multiplied",
        KERNEL,
        "multiply_halo<P, kType>(d, weights, consumer, arguments.slices, first_use);\n    consumer.sync_all();",
        "multiply_halo<P, kType>(d, weights, consumer, arguments.slices, first_use);",
    ),
    Fault(
        "y1 multiplied before all of it is there",
        KERNEL,
        "fence_proxy_async();\n    consumer.sync_all();",
        "fence_proxy_async();",
    ),
    Fault("y1 not visible to wgmma", KERNEL, "fence_proxy_async();\n    consumer.sync_all();", "consumer.sync_all();"),
    Fault("y2 in the place of a y1 that is read", KERNEL, "if constexpr (P::kSharesHidden) consumer.sync_all();", ""),
    Fault(
        "slot freed before its output is stored",
        KERNEL,
        "tma_store_wait_read();\n    mbarrier_arrive(P::input_empty(slot));",
        "mbarrier_arrive(P::input_empty(slot));\n    tma_store_wait_read();",
    ),
    Fault("input freed before the shortcut", KERNEL, "pass == kExpansion - 1", "pass == 0"),
    Fault(
        "slots ready before they are clear",
        KERNEL,
        "clear_tails(consumer);\n    mbarrier_arrive(P::slots_ready());",
        "mbarrier_arrive(P::slots_ready());\n    clear_tails(consumer);",
    ),
    Fault(
        "tails not cleared",
        KERNEL,
        "store_shared(P::input(slot) + P::kHaloPixels * kPixelBytes + at, Chunk{});",
        "",
    ),
    Fault("last stores not awaited", KERNEL, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("producer keeps its registers", KERNEL, "register_budget_decrease<P::kProducerRegisters>();", ""),
    Fault(
        "slot free when one of two consumers is done",
        KERNEL,
        "P::kIdentity ? P::kPixelParts : kWarps",
        "P::kIdentity ? 1 : kWarps",
    ),
]
# Who waits for a TMA load has, to the emulator, waited for all that were complete before it, whatever their barriers.
UNSEEN = [
    Fault(
        "strided pixels not awaited",
        KERNEL,
        "if constexpr (!P::kKeepsInput) mbarrier_wait(P::strided_full(), tiles % 2);",
        "",
    ),
]


@functools.cache
def _inputs(case):
    """With a NaN in a corner: what is to be NaN, and nothing else, must come out so."""
    inputs = draw(case)
    inputs.x[-1, -1, -1, 7] = torch.nan
    return inputs, expected(case, inputs)


def _check(library):
    for case in CASES:
        inputs, answer = _inputs(case)
        assert_rounded(run(library, case, inputs), *answer)
        assert moved_bytes(library)[1] == 2 * answer[0].numel()


BOTTLENECK = Kernel("kernels/bottleneck/host.cpp", _check, FAULTS + UNSEEN, "-w")


@pytest.fixture(scope="module", autouse=True)
def drawn():
    """The cases' inputs and answers, once, and not in each process that a fault is in."""
    for case in CASES:
        _inputs(case)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert BOTTLENECK.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert BOTTLENECK.outcome(fault) == ""


def test_nothing_is_noticed_where_nothing_is_planted():
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(BOTTLENECK.sound()) == {""}
