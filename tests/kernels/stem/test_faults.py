"""Faults planted in the stem and in its weight gradient: every one that the emulation can see must be noticed."""

import pytest
import torch

from tests.kernels.stem import forward_calls as stem_calls
from tests.kernels.stem import wgrad_calls as stem_wgrad_calls
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

IMAGE, PLAN, KERNEL, WGRAD = (
    f"kernels/stem/{part}.cuh" for part in ("image", "forward/plan", "forward/kernel", "wgrad/kernel")
)

# More tiles than slots, so that every barrier is used twice; ragged on both sides; a NaN that a neighbour must not get.
ACT_CASE = stem_calls.Case(2, 20, 51, residual=True, blocks=1)
STATISTICS_CASE = stem_calls.Case(1, 21, 70, blocks=1, dtype=torch.float16)
NAN_CASE = stem_calls.Case(1, 15, 31)
WGRAD_CASES = [
    stem_wgrad_calls.Case(3, 20, 51, splits=2),
    stem_wgrad_calls.Case(1, 9, 20, batch=False, dtype=torch.float16),
]

HALO_FAULTS = [
    Fault("halo one row too low", IMAGE, "box.row * kStride - kPadding", "box.row * kStride - kPadding + 1"),
    Fault("padding left of the image read", IMAGE, "column >= 0", "true"),
    Fault("last row of the image lost", IMAGE, "row < images.height", "row + 1 < images.height"),
    Fault("every image is the first", IMAGE, "int64_t{box.image} * images.height", "int64_t{0}"),
    Fault("a tile gets the next one's halo", IMAGE, "take(tile, n, part);", "take(tile, n, next);"),
    Fault("rows of the filter not told apart", IMAGE, "(row * kStride + filter_row)", "(row * kStride)"),
    Fault("stride of one along the row", IMAGE, "(column + pair) * 16", "(column / 2 + pair) * 16"),
]

FAULTS = [
    *HALO_FAULTS,
    Fault("swizzle of the filters forgotten", KERNEL, "swizzled(Swizzle::k64B, to)", "to"),
    Fault(
        "rows and taps of a filter exchanged",
        KERNEL,
        "(filter * kFilterSize + row) * kFilterSize + tap",
        "(filter * kFilterSize + tap) * kFilterSize + row",
    ),
    Fault("filters not visible to wgmma", KERNEL, "fence_proxy_async();", ""),
    Fault("filters read before they are there", KERNEL, "cta_sync();", ""),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("filters loaded too early", KERNEL, "wait_for_previous_grid();", ""),
    Fault("slot not awaited", KERNEL, "mbarrier_wait(V::empty(at.slot), at.parity ^ 1);", ""),
    Fault("halo read before it is there", KERNEL, "mbarrier_wait(V::full(at.slot), at.parity);", ""),
    Fault("slot never given back", KERNEL, "if (lane_index() == 0) mbarrier_arrive(V::empty(at.slot));", ""),
    Fault(
        "slot full after one thread",
        KERNEL,
        "mbarrier_init(V::full(slot), kLoaders);",
        "mbarrier_init(V::full(slot), 1);",
    ),
    Fault("eighth tap multiplied", KERNEL, "lane_index() % 4 < 2 ? 0xFFFFFFFF : 0", "0xFFFFFFFF"),
    Fault("another tap dropped in the eighth's place", KERNEL, "value[2] &= filter_taps;", "value[0] &= filter_taps;"),
    Fault("second half of the taps is the first", KERNEL, "2 * step + pair", "pair"),
    Fault("second 64 pixels are the first", KERNEL, "block * (kTileRows / kRowBlocks)", "0"),
    Fault("groups of filters too near", KERNEL, "8 * V::kFilterRowBytes", "4 * V::kFilterRowBytes"),
    Fault("k steps of half the length", KERNEL, "advanced(filters, step * 32)", "advanced(filters, step * 16)"),
    Fault("first product added to what was there", KERNEL, "filter_row + step > 0", "true"),
    Fault("every row with the same filters", KERNEL, "V::filter_rows(filter_row)", "V::filter_rows(1)"),
    Fault("no wgmma.fence", KERNEL, "wgmma_fence();", ""),
    Fault("last products not awaited", KERNEL, "wgmma_wait<0>();", "wgmma_wait<1>();"),
    Fault("both consumers take every tile", KERNEL, "block_index() + index * block_count()", "block_index()"),
    Fault("last store not awaited", KERNEL, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    Fault("consumers share an output", PLAN, "kOutputAt + consumer * kOutputBytes", "kOutputAt"),
    Fault("consumers share their moments", PLAN, "kMomentsAt + consumer * kMomentBytes", "kMomentsAt"),
]
# Operands in registers are read when wgmma is issued, on a GPU until it is complete; a lane's reads are its warp's.
UNSEEN = {
    "stem": Fault("fragments overwritten while wgmma reads them", KERNEL, "if (row > 1) wgmma_wait<1>();", ""),
    "stem_wgrad": Fault("slot given back by one lane for all", WGRAD, "warp_sync();", ""),
}

BACKWARD = "kernels::bn_backward<kType>(dz.word[i], z.word[i], k.a[i], k.b[i], k.c[i])"
WGRAD_FAULTS = [
    *HALO_FAULTS,
    Fault(
        "channels exchanged",
        IMAGE,
        "element[0] | uint32_t{element[1]} << 16",
        "element[1] | uint32_t{element[0]} << 16",
    ),
    Fault("slot not awaited", WGRAD, "mbarrier_wait(Plan::empty(at.slot), at.parity ^ 1);", ""),
    Fault("fewer bytes expected than loaded", WGRAD, "(1 + has_z) * kSliceBytes", "kSliceBytes"),
    Fault("g read before it is loaded", WGRAD, "mbarrier_wait(Plan::loaded(at.slot), at.parity);", ""),
    Fault("operands read before they are made", WGRAD, "mbarrier_wait(Plan::full(at.slot), at.parity);", ""),
    Fault(
        "no proxy fence behind dz",
        WGRAD,
        "fence_proxy_async();\n        mbarrier_arrive(Plan::full(at.slot));",
        "mbarrier_arrive(Plan::full(at.slot));",
    ),
    Fault("halo not stored", WGRAD, "store_halo(Plan::halo(at.slot), part, thread);", ""),
    Fault("outputs that do not exist have a gradient", WGRAD, "parameters.tiles.inside(box, pixel)", "true"),
    Fault("b and c exchanged", WGRAD, BACKWARD, BACKWARD.replace("k.b[i], k.c[i]", "k.c[i], k.b[i]")),
    Fault(
        "coefficients of other filters",
        WGRAD,
        "thread % (kFilters / kChunkChannels) * kChunkChannels",
        "thread % (kFilters / kChunkChannels)",
    ),
    Fault("z is g", WGRAD, "at + kSliceBytes", "at"),
    Fault(
        "outputs' halves exchanged in dz",
        WGRAD,
        "row * kTileColumns + 8 * high + r",
        "row * kTileColumns + 8 * low + r",
    ),
    Fault("outputs' halves exchanged in the taps", WGRAD, "8 * low + r", "8 * high + r"),
    Fault("filters' halves exchanged", WGRAD, "2 * block + low", "2 * block + 1 - low"),
    Fault("second half of the taps is the first", WGRAD, "2 * i + high", "high"),
    Fault("fragments of a pair exchanged", WGRAD, "pair % 2 * 2", "(pair + 1) % 2 * 2"),
    Fault("eighth tap written", WGRAD, "tap == kFilterSize", "false"),
    Fault("fourth channel written", WGRAD, "channel == kChannels", "false"),
    Fault(
        "all splits in the first row",
        WGRAD,
        "block_index() * (kFilters * kFilterSize * kFilterSize * kChannels)",
        "0",
    ),
    Fault("last row of a tile left out", WGRAD, "row < kTileRows", "row < kTileRows - 1"),
    Fault("slot never given back", WGRAD, "release(Plan::empty(at.slot));", ""),
    Fault(
        "slot empty after one warp",
        WGRAD,
        "mbarrier_init(Plan::empty(slot), kMultiplierWarps);",
        "mbarrier_init(Plan::empty(slot), 1);",
    ),
    Fault("no fence after the mbarriers' set-up", WGRAD, "mbarrier_init_fence();", ""),
    Fault("no barrier after the set-up", WGRAD, "cta_sync();", ""),
    Fault(
        "two warps have the same row of the filter",
        WGRAD,
        "warp - kFirstMultiplierWarp",
        "(warp - kFirstMultiplierWarp) / 2",
    ),
]


def _check_stem(library):
    stem_calls.check_act(library, ACT_CASE)
    stem_calls.check_stats(library, STATISTICS_CASE)
    stem_calls.check_nan(library, NAN_CASE)


def _check_wgrad(library):
    for case in WGRAD_CASES:
        stem_wgrad_calls.check(library, case)


KERNELS = {
    "stem": Kernel("kernels/stem/forward/host.cpp", _check_stem, [*FAULTS, UNSEEN["stem"]], "-w"),
    "stem_wgrad": Kernel("kernels/stem/wgrad/host.cpp", _check_wgrad, [*WGRAD_FAULTS, UNSEEN["stem_wgrad"]], "-w"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert KERNELS["stem"].outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", WGRAD_FAULTS, ids=lambda fault: fault.name)
def test_fault_in_the_gradient_is_noticed(fault):
    assert KERNELS["stem_wgrad"].outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("kernel", KERNELS)
def test_fault_that_cannot_be_seen(kernel):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert KERNELS[kernel].outcome(UNSEEN[kernel]) == ""


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_noticed_where_nothing_is_planted(kernel):
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(KERNELS[kernel].sound()) == {""}
