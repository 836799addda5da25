"""Faults planted in conv3x3_halo_split: every one that the emulation can see must be noticed.

Those in the halo, the taps and the epilogue, which it shares with conv3x3_halo, are in test_forward_faults.py.
"""

import pytest

from tests.kernels.conv3x3.split_calls import Case, check
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PLAN, KERNEL = (f"kernels/conv3x3/split/{part}.cuh" for part in ("plan", "kernel"))
SPLITS, LAUNCHER = "kernels/parts/split_products.cuh", "kernels/conv3x3/split/launch.cu"

# Several tiles and more slices than slots a block, whose last split is not always the block's; nobody to share with.
CASES = [
    Case(320, 1, 1, 9, 7, residual=True, splits=3, blocks=3, seed=1),
    Case(192, 2, 2, 5, 17, splits=2, blocks=1, seed=2, filters=128),
    Case(192, 1, 1, 5, 9, residual=True, blocks=1, seed=3),
]

FAULTS = [
    # ---- work ----
    Fault("pixels of the wrong tile", PLAN, "tile / filter_tiles", "tile % filter_tiles"),
    Fault("as many filters as channels", PLAN, "parameters.filters / kFilterTile", "slices"),
    Fault("every tile with the first one's filters", PLAN, "tile % filter_tiles * kFilterTile", "0"),
    Fault("first slice in two splits", PLAN, "split * slices / splits", "split * slices / (splits + 1)"),
    Fault("last slice in no split", PLAN, "(split + 1) * slices / splits", "(split + 1) * (slices - 1) / splits"),
    Fault(
        "last work left out",
        PLAN,
        "split_tile_count<P>(parameters.arguments.problem, parameters.filters) * parameters.splits",
        "split_tile_count<P>(parameters.arguments.problem, parameters.filters) * parameters.splits - 1",
    ),
    # ---- load ----
    Fault("slot overwritten before it is empty", KERNEL, "mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);", ""),
    Fault(
        "weights overwritten before they are read",
        KERNEL,
        "mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);",
        "",
    ),
    Fault("fewer weights expected than loaded", KERNEL, "kFilterBytes", "kFilterBytes - 128"),
    Fault(
        "every split with the first one's weights",
        KERNEL,
        "slice * kSliceChannels",
        "(slice - work.first_slice) * kSliceChannels",
    ),
    Fault(
        "every slice with the first one's halo",
        KERNEL,
        "load_slice<P>(parameters.input, parameters.arguments.problem, work.pixels, slice, at.slot);",
        "load_slice<P>(parameters.input, parameters.arguments.problem, work.pixels, 0, at.slot);",
    ),
    Fault(
        "input loaded before the grid before has ended",
        KERNEL,
        "wait_for_previous_grid();\n        load_slices<P>(parameters);",
        "load_slices<P>(parameters);",
    ),
    Fault(
        "weights loaded before the grid before has ended",
        KERNEL,
        "if (!parameters.arguments.weights_ready) wait_for_previous_grid();",
        "",
    ),
    # ---- multiply, join, finish ----
    Fault("multiplied before it is loaded", KERNEL, "mbarrier_wait(P::halo_full(at.slot), at.parity);", ""),
    Fault("slot never given back", KERNEL, "release(P::halo_empty(at.slot));", ""),
    Fault("products of the work before kept", KERNEL, "slice == work.first_slice", "slice == 0"),
    Fault("slots counted anew for every tile", KERNEL, "turn<P::kSlots>(halo_use)", "turn<P::kSlots>(slice)"),
    Fault("all splits in one place", KERNEL, "work.split * kSplitProducts", "0"),
    Fault("all tiles in one place", KERNEL, "static_cast<int64_t>(work.tile) * splits * kSplitProducts", "0"),
    Fault("own products added twice", KERNEL, "d[i] = 0;", ""),
    Fault("tiles share their arrivals", KERNEL, "&parameters.arrivals[work.tile]", "parameters.arrivals"),
    Fault(
        "last split does not finish",
        KERNEL,
        "if (!join_splits<P>(d[0], parameters, work, consumer)) continue;",
        "if (join_splits<P>(d[0], parameters, work, consumer)) continue;",
    ),
    Fault("output written while TMA stores it", KERNEL, "if (!is_split) open();", ""),
    Fault(
        "finished before the grid before has ended",
        KERNEL,
        "wait_for_previous_grid();\n        consume<P, kType>(parameters);",
        "consume<P, kType>(parameters);",
    ),
    Fault("store not awaited at the end", KERNEL, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    # ---- the sum ----
    Fault(
        "first quad of every split not left",
        SPLITS,
        "store_global(to, Floats4{{d[i], d[i + 1], d[i + 2], d[i + 3]}});",
        "if (i > 0) store_global(to, Floats4{{d[i], d[i + 1], d[i + 2], d[i + 3]}});",
    ),
    Fault("two threads' quads in one place", SPLITS, "to += kQuadStride", "to += kQuadStride / 2"),
    Fault(
        "quads read in another order",
        SPLITS,
        "from + quad * kQuadStride",
        "from + (kCount / 4 - 1 - quad) * kQuadStride",
    ),
    Fault("last split not added", SPLITS, "split < splits", "split < splits - 1"),
    Fault("first split added over and over", SPLITS, "from += pitch", "from += 0"),
    Fault(
        "last split but one finishes",
        SPLITS,
        "atomic_increment(arrivals) + 1 == uint32_t(splits)",
        "atomic_increment(arrivals) + 2 == uint32_t(splits)",
    ),
    Fault("arrivals stay", SPLITS, "if (is_last) *arrivals = 0;", ""),
    Fault(
        "answer read before it is there",
        SPLITS,
        "consumer.sync();\n    if (!load_shared<uint32_t>(flag)) return false;",
        "if (!load_shared<uint32_t>(flag)) return false;",
    ),
    # ---- set-up ----
    Fault("no barrier after the set-up", KERNEL, "cta_sync();", ""),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault(
        "slot empty after one warp",
        KERNEL,
        "mbarrier_init(P::halo_empty(slot), kConsumerWarps);",
        "mbarrier_init(P::halo_empty(slot), 1);",
    ),
    Fault(
        "box of twice the filters",
        LAUNCHER,
        "weights_shape(channels, filters, kFilterTile)",
        "weights_shape(channels, filters, 2 * kFilterTile)",
    ),
]
# Blocks run one after the other, so memory is ordered as it is, and the last to finish a tile stores over the others.
UNSEEN = [
    Fault(
        "others than the last split finish",
        SPLITS,
        "if (!load_shared<uint32_t>(flag)) return false;\n    memory_fence_gpu();",
        "memory_fence_gpu();",
    ),
    Fault("no fence before a split arrives", SPLITS, "memory_fence_gpu();\n    consumer.sync();", "consumer.sync();"),
    Fault("no fence before the others are read", SPLITS, "memory_fence_gpu();\n    return true;", "return true;"),
]


def _check(library):
    for case in CASES:
        check(case, library)


SPLIT = Kernel("kernels/conv3x3/split/host.cpp", _check, FAULTS + UNSEEN, "-w")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert SPLIT.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert SPLIT.outcome(fault) == ""


def test_nothing_is_noticed_where_nothing_is_planted():
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(SPLIT.sound()) == {""}
