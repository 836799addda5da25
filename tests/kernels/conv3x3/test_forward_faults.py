"""Faults planted in conv3x3_halo: every one that the emulation can see must be noticed by a case of its tests.

A fault that goes unnoticed means that a check is missing, in the emulator or in the cases.
"""

import pytest

from tests.kernels.conv3x3.forward_calls import Case, check
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PARTS = ("plan", "load", "multiply", "epilogue", "kernel")
PLAN, LOAD, MULTIPLY, EPILOGUE, KERNEL = (f"kernels/conv3x3/forward/{part}.cuh" for part in PARTS)
MAPS = "kernels/conv3x3/forward/maps.h"
WEIGHTS = "return {{channels, kTaps, filters, 1}, {kSliceChannels, 1, box_filters, 1}, {1, 1, 1, 1}, false};"
OUTPUT = "return {{filters, p.out_width, p.out_height, p.images}, {kSliceChannels, kTileColumns, 1, 1}, {1, 1, 1, 1},"
OUTPUT += " false};"

# Weights in registers; streamed, with more slices than slots and two accumulators; two passes over the filters; more
# filters than channels.
PLANS = "-DCONV3X3_HALO_PLANS(PLAN)=PLAN(64, 64, 1) PLAN(256, 256, 2) PLAN(512, 512, 1) PLAN(64, 128, 2)"
CASES = [
    Case(64, 1, 2, 20, 12, seed=1),
    Case(64, 1, 2, 33, 12, prologue="packed", epilogue="act", residual=True, seed=2),
    Case(64, 1, 3, 20, 20, prologue="", epilogue="act", blocks=1),
    Case(256, 2, 3, 13, 17, blocks=1, seed=1),
    Case(256, 2, 3, 14, 18, prologue="packed", epilogue="act", residual=True, blocks=1, seed=3),
    Case(512, 1, 3, 7, 7, prologue="", epilogue="act", residual=True, blocks=1),
    Case(64, 2, 2, 7, 12, seed=1, filters=128),
]

FAULTS = [
    # ---- geometry ----
    Fault(
        "rows and columns of a tap swapped",
        PLAN,
        "row * kRowBytes + pixel * kPixelBytes",
        "row * kPixelBytes + pixel * kRowBytes",
    ),
    Fault(
        "column of the wrong parity",
        PLAN,
        "column == 1 ? kLoadPixels : column / 2",
        "column == 1 ? kLoadPixels : column",
    ),
    Fault("tiles too far apart", PLAN, "across * kTileColumns", "across * (kTileColumns + 1)"),
    Fault(
        "halo one row too low",
        PLAN,
        "stacked - image * P::kStride * static_cast<int>(problem.image_pitch.divisor) - 1",
        "stacked - image * P::kStride * static_cast<int>(problem.image_pitch.divisor)",
    ),
    Fault("no blank row between two images", PLAN, "here.row == blank_", "here.row == blank_ - 1"),
    Fault("no more filters than channels", MAPS, WEIGHTS, WEIGHTS.replace("kTaps, filters", "kTaps, channels")),
    Fault("no more channels out than in", MAPS, OUTPUT, OUTPUT.replace("filters", "P::kChannels")),
    Fault("parity never changes", PLAN, "static_cast<uint32_t>(use / kSize % 2)", "0u"),
    # ---- loads ----
    Fault("halo one column to the right", LOAD, "column + phase", "column + phase + 1"),
    Fault("fewer bytes expected than loaded", LOAD, "P::kSliceBytes", "P::kSliceBytes - 128"),
    Fault("last halo row not loaded", LOAD, "row < P::kHaloRows", "row < P::kHaloRows - 1"),
    Fault("slot overwritten before it is empty", LOAD, "mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);", ""),
    Fault(
        "empty slot awaited in the wrong phase",
        LOAD,
        "mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);",
        "mbarrier_wait(P::halo_empty(at.slot), at.parity);",
    ),
    Fault("slots used before the filters in them are taken", LOAD, "mbarrier_wait(P::filters_taken(), 0);", ""),
    Fault(
        "filters of the wrong tap",
        LOAD,
        "P::slice(0) + tap * kFilterBytes",
        "P::slice(0) + (kLastTap - 1 - tap) * kFilterBytes",
    ),
    Fault(
        "weights overwritten before they are read", LOAD, "mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);", ""
    ),
    Fault("more weights expected than loaded", LOAD, "P::kStageBytes", "P::kStageBytes + 128"),
    Fault("weights of other filters", LOAD, "tile * kConsumers * kFilterTile", "tile * kFilterTile"),
    Fault("every pass with the first one's filters", LOAD, "pass * P::kFiltersAtOnce", "0"),
    # ---- prologue ----
    Fault("normalised before it is loaded", LOAD, "mbarrier_wait(P::halo_full(at.slot), at.parity);", ""),
    Fault("no proxy fence after the prologue", LOAD, "fence_proxy_async();", ""),
    Fault("normalised slice never announced", LOAD, "mbarrier_arrive(P::halo_normalized(at.slot));", ""),
    Fault(
        "swizzle forgotten",
        LOAD,
        "swizzled(Swizzle::k128B, pixels + pixel * kPixelBytes + chunk * 16)",
        "pixels + pixel * kPixelBytes + chunk * 16",
    ),
    Fault(
        "first slice's scale and shift for all",
        LOAD,
        "slice * kPixelChunks + thread % kPixelChunks",
        "thread % kPixelChunks",
    ),
    Fault(
        "padding left of the image normalised",
        LOAD,
        "static_cast<uint32_t>(column) < static_cast<uint32_t>(width)",
        "column < width",
    ),
    Fault("padding below the image normalised", LOAD, "at.row < problem.height", "at.row <= problem.height"),
    Fault("padding above the image normalised", LOAD, "at.row >= 0", "true"),
    Fault("shift of the neighbouring channel", LOAD, "shift.value[2 * i + 1]", "shift.value[2 * i]"),
    Fault(
        "packed scale and shift exchanged",
        LOAD,
        "fma_relu_oob<kType>(value.word[i], scale.word[i], shift.word[i])",
        "fma_relu_oob<kType>(value.word[i], shift.word[i], scale.word[i])",
    ),
    # ---- products ----
    Fault(
        "multiplied before the prologue is done",
        MULTIPLY,
        "normalized ? P::halo_normalized(slot) : P::halo_full(slot)",
        "P::halo_full(slot)",
    ),
    Fault(
        "descriptor of another swizzle",
        MULTIPLY,
        "matrix_descriptor(P::slice(slot), 16, P::kGroupBytes, Swizzle::k128B)",
        "matrix_descriptor(P::slice(slot), 16, P::kGroupBytes, Swizzle::k64B)",
    ),
    Fault("groups of pixels too far apart", MULTIPLY, "P::kGroupBytes", "P::kGroupBytes + P::kRowBytes"),
    Fault("filters read unswizzled", MULTIPLY, "swizzled(Swizzle::k128B, address)", "address"),
    Fault("fragments of filters exchanged", MULTIPLY, "(2 * step + matrix / 2) * 16", "(2 * step + matrix % 2) * 16"),
    Fault("filters taken before they are loaded", MULTIPLY, "mbarrier_wait(P::filters_full(), 0);", ""),
    Fault("first product added to what was there", MULTIPLY, "tap + step > 0", "true"),
    Fault("k steps of half the length", MULTIPLY, "advanced(pixels, step * 32)", "advanced(pixels, step * 16)"),
    Fault("last tap left out", MULTIPLY, "P::tap_offset(kLastTap)", "P::tap_offset(kLastTap - 1)"),
    Fault(
        "no wgmma.fence",
        MULTIPLY,
        "mbarrier_wait(P::weights_full(at.slot), at.parity);\n            wgmma_fence();",
        "mbarrier_wait(P::weights_full(at.slot), at.parity);",
    ),
    Fault(
        "sums read before the products are done",
        MULTIPLY,
        "wgmma_wait<0>();\n    settled(d);",
        "settled(d);",
    ),
    Fault(
        "slot given back before the products are done",
        MULTIPLY,
        "wgmma_commit();\n    wgmma_wait<0>();\n    settled(d);\n    release(P::halo_empty(slot));",
        "release(P::halo_empty(slot));\n    wgmma_commit();\n    wgmma_wait<0>();\n    settled(d);",
    ),
    Fault("slot never given back", MULTIPLY, "release(P::halo_empty(slot));", ""),
    Fault("weights read before they are loaded", MULTIPLY, "mbarrier_wait(P::weights_full(at.slot), at.parity);", ""),
    Fault("both consumers with the first one's filters", MULTIPLY, "consumer * kFilterBytes", "0"),
    Fault("weights given back while they are read", MULTIPLY, "wgmma_wait<1>();", "wgmma_wait<2>();"),
    Fault(
        "weights never given back",
        MULTIPLY,
        "if (tap + tile > 0) release(P::weights_empty(turn<P::kStages>(use - 1).slot));",
        "",
    ),
    Fault(
        "the next weights given back",
        MULTIPLY,
        "if (tap + tile > 0) release(P::weights_empty(turn<P::kStages>(use - 1).slot));",
        "if (tap + tile > 0) release(P::weights_empty(turn<P::kStages>(use).slot));",
    ),
    Fault("slices of a tile not added up", MULTIPLY, "!first_slice || tap > 0", "tap > 0"),
    # ---- statistics ----
    Fault(
        "blank rows counted",
        EPILOGUE,
        "at.row == problem.out_height || at.image >= problem.images",
        "at.image >= problem.images",
    ),
    Fault(
        "rows behind the last image counted",
        EPILOGUE,
        "at.row == problem.out_height || at.image >= problem.images",
        "at.row == problem.out_height",
    ),
    Fault("columns behind the last counted", EPILOGUE, "lane_index() % 4 * 2 + i < columns", "true"),
    Fault("two lanes left out of a sum", EPILOGUE, "value + shuffle_xor(value, 2)", "value"),
    Fault("tiles merged with the wrong weight", EPILOGUE, "delta * delta * a_count * share", "delta * delta * share"),
    Fault(
        "moments of a tile not merged",
        EPILOGUE,
        "merged(before, consumer.pixels, tile[half], extent.count)",
        "tile[half]",
    ),
    Fault("means among the counts", EPILOGUE, "row[P::kFilters] = total.mean", "row[P::kChannels] = total.mean"),
    Fault("one consumer's moments forgotten", EPILOGUE, "more > 0", "set == 0"),
    Fault(
        "partials written before the other consumer is done",
        EPILOGUE,
        "named_barrier_sync(kAllConsumersBarrier, kConsumers * kWarpgroup);",
        "",
    ),
    Fault("rows that are not needed left as they were", EPILOGUE, "row < arguments.partial_rows", "row < 0"),
    # ---- output ----
    Fault("staging buffer overwritten under the store", EPILOGUE, "tma_store_wait_read();", ""),
    Fault("fewer residual bytes expected than loaded", EPILOGUE, "P::kStagedBytes", "P::kStagedBytes - 128"),
    Fault(
        "residual read before it is loaded",
        EPILOGUE,
        "mbarrier_wait(P::residual_full(consumer.index), consumer.residual_uses++ % 2);",
        "",
    ),
    Fault("residual awaited in the first phase only", EPILOGUE, "consumer.residual_uses++ % 2", "0"),
    Fault("residual of other rows", EPILOGUE, "from.row", "from.row + 1"),
    Fault("a consumer's warps do not wait for each other", EPILOGUE, "named_barrier_sync(barrier, kWarpgroup);", ""),
    Fault("no proxy fence before the store", EPILOGUE, "fence_proxy_async();", ""),
    Fault(
        "stored before all have written",
        EPILOGUE,
        "fence_proxy_async();\n        consumer.sync();",
        "fence_proxy_async();",
    ),
    Fault("store never committed", EPILOGUE, "tma_store_commit();", ""),
    Fault("scale of the other filter", KERNEL, "norm.scale[pair % 2]", "norm.scale[0]"),
    Fault("rows of the output exchanged", EPILOGUE, "matrix / 2 * kTileColumns", "(1 - matrix / 2) * kTileColumns"),
    # ---- the grid before ----
    Fault(
        "prologue's vectors read before the grid before has ended",
        KERNEL,
        "wait_for_previous_grid();\n        "
        "prepare_norm<P, kType>(arguments.in_scale, arguments.in_shift, arguments.packed_limit, thread_index());",
        "prepare_norm<P, kType>(arguments.in_scale, arguments.in_shift, arguments.packed_limit, thread_index());",
    ),
    Fault(
        "wait after the first halo",
        KERNEL,
        "wait_for_previous_grid();\n        load_halos<P>(parameters.input, arguments.problem);",
        "load_halos<P>(parameters.input, arguments.problem);\n        wait_for_previous_grid();",
    ),
    Fault(
        "filters loaded early without a promise",
        KERNEL,
        "if (!arguments.weights_ready) wait_for_previous_grid();\n            load_filters<P>(parameters.weights);",
        "load_filters<P>(parameters.weights);",
    ),
    Fault(
        "weights streamed early without a promise",
        KERNEL,
        "if (!arguments.weights_ready) wait_for_previous_grid();\n"
        "            if (lane_index() == 0) stream_weights<P>(parameters.weights, arguments.problem);",
        "if (lane_index() == 0) stream_weights<P>(parameters.weights, arguments.problem);",
    ),
    Fault(
        "tiles stored without a wait",
        KERNEL,
        "wait_for_previous_grid();\n        consume_tiles<P, kType, kEpilogue>(parameters, filters, consumer);",
        "consume_tiles<P, kType, kEpilogue>(parameters, filters, consumer);",
    ),
    Fault(
        "filters' tiles stored without a wait",
        KERNEL,
        "wait_for_previous_grid();\n        consume_filters<P, kType, kEpilogue>(parameters, consumer);",
        "consume_filters<P, kType, kEpilogue>(parameters, consumer);",
    ),
    # ---- roles ----
    Fault("one barrier for both consumers", EPILOGUE, "kFirstConsumerBarrier + index", "kFirstConsumerBarrier"),
    Fault("no barrier after the set-up", KERNEL, "cta_sync();", ""),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("slot empty after one of two consumers", KERNEL, "P::kWeightsInRegisters ? 1 : kConsumers", "1"),
    Fault(
        "too few arrivals normalise a slice",
        KERNEL,
        "mbarrier_init(P::halo_normalized(slot), Normalizers<P>::kThreads);",
        "mbarrier_init(P::halo_normalized(slot), Normalizers<P>::kThreads / 2);",
    ),
    Fault(
        "more registers than there are",
        KERNEL,
        "register_budget_increase<P::kConsumerRegisters>();",
        "register_budget_increase<P::kConsumerRegisters + 8>();",
    ),
    Fault("producer keeps its registers", KERNEL, "register_budget_decrease<P::kProducerRegisters>();", ""),
    Fault(
        "slices given back after the first pass",
        KERNEL,
        "if (pass == P::kPasses - 1) release(P::halo_empty(at.slot));",
        "release(P::halo_empty(at.slot));",
    ),
    Fault("store not awaited at the end", KERNEL, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    Fault("slots taken in another order than filled", KERNEL, "use += kConsumers", "++use"),
    Fault("second tile of filters not stored", KERNEL, "first_filter + i * kConsumers * kFilterTile", "first_filter"),
]

# What the emulation cannot see, and why.
UNSEEN = [
    # An mbarrier may count bytes that arrive before they are expected: this one only has to be the same warp's phase.
    Fault("bytes may arrive before they are expected", LOAD, "warp_sync();", ""),
    # Between a read by threads and a write by TMA the emulator asks for a barrier, not for a proxy fence too.
    Fault("no proxy fence after the filters are taken", MULTIPLY, "fence_proxy_async();", ""),
]


def _check(library):
    for case in CASES:
        check(case, library)


HALO = Kernel("kernels/conv3x3/forward/host.cpp", _check, FAULTS + UNSEEN, PLANS, "-w")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert HALO.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert HALO.outcome(fault) == ""


def test_nothing_is_noticed_where_nothing_is_planted():
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(HALO.sound()) == {""}
