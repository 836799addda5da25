"""Faults planted in conv1x1_products, alone and in clusters: every one that the emulation can see must be noticed."""

import pytest

from tests.kernels.conv1x1.products_calls import Case, check
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PLAN, LOAD, PROLOGUE, EXCHANGE, KERNEL = (
    f"kernels/conv1x1/products/{part}.cuh" for part in ("plan", "load", "prologue", "exchange", "kernel")
)
LAUNCHER = "kernels/conv1x1/products/launch.cu"

# More slices and tiles than stages and slots, so that every barrier is used twice; ragged in pixels, channels, filters.
CASES = [Case(2, 13, 11, 72, 904, rows=1), Case(3, 13, 11, 72, 200, rows=1)]

FAULTS = [
    Fault(
        "t overwrites what the other consumer reads",
        KERNEL,
        "// The other consumer's products have read the activations too.\n        consumers_sync();",
        "",
    ),
    Fault("grad multiplied before it is masked", KERNEL, "consumers_sync();\n    wgmma_fence();", "wgmma_fence();"),
    Fault("t not visible to TMA", KERNEL, "fence_proxy_async();\n    warp_sync();", "warp_sync();"),
    Fault("both consumers have the same rows", KERNEL, "turn<V::kStages>(use + consumer)", "turn<V::kStages>(use)"),
    Fault(
        "last column of activations lost",
        PROLOGUE,
        "arguments.problem.tiles.inside(box, pixel)",
        "arguments.problem.tiles.inside(box, pixel + 1)",
    ),
    Fault("sums lack half of the lanes", PROLOGUE, "mask > 0", "mask > 1"),
    Fault("weights' slices taken for adjacent", PLAN, "channel_slice * kWeightSliceBytes", "channel_slice"),
    Fault(
        "z arrives before t has left",
        LOAD,
        "tma_store_wait_read();\n        mbarrier_arrive(V::kClusters ? V::t_empty() : V::z_empty(at.slot));",
        "mbarrier_arrive(V::kClusters ? V::t_empty() : V::z_empty(at.slot));\n        tma_store_wait_read();",
    ),
    Fault("slot of z not awaited", LOAD, "mbarrier_wait(V::z_empty(at.slot), at.parity ^ 1);", ""),
    # ---- in clusters ----
    Fault("every block has the first filters", PLAN, "rank * kBlockFilters", "0"),
    Fault(
        "rows of M from the first filter on",
        KERNEL,
        "share.first_filter + (2 * pair + consumer) * kSliceChannels",
        "(2 * pair + consumer) * kSliceChannels",
    ),
    Fault("sums of g from the first filter on", KERNEL, "share.first_filter + thread", "thread"),
    Fault("every block stores the first pixels", LOAD, "share.rank * kTilePixels / share.ranks", "0"),
    Fault("whole tiles of t stored", LAUNCHER, "kTileLog2 - std::countr_zero(unsigned(ranks))", "kTileLog2"),
    Fault("z overwritten after one warp", KERNEL, "V::kClusters ? kConsumerWarps : 1", "1"),
    Fault("t staged while TMA stores it", KERNEL, "mbarrier_wait(V::t_empty(), at.parity ^ 1);", ""),
    Fault("t leaves before all its owners have staged it", KERNEL, "kConsumerWarps / ranks", "1"),
    Fault("sent before the owner has taken what was there", EXCHANGE, "mbarrier_wait(barrier, at.parity ^ 1);", ""),
    Fault("added before all has come", EXCHANGE, "mbarrier_wait(barrier, at.parity);", ""),
    Fault("one sender expected", EXCHANGE, "(exchange.ranks - 1) * kPieceBytes", "kPieceBytes"),
    Fault("what the rank sends itself added", EXCHANGE, "sender != exchange.rank", "true"),
    Fault("all senders use one place", EXCHANGE, "exchange.slot(at.slot, exchange.rank)", "exchange.slot(at.slot, 0)"),
    Fault("all warps use one place", EXCHANGE, "consumer_warp % (kConsumerWarps / share.ranks)", "0"),
    Fault("told before all lanes have read", EXCHANGE, "warp_sync();", ""),
    Fault("the last rank is not told", EXCHANGE, "lane < exchange.ranks", "lane + 1 < exchange.ranks"),
    Fault(
        "bytes counted for the other slot",
        EXCHANGE,
        "remote_address(barrier, exchange.owner)",
        "remote_address(V::exchanged(at.slot ^ 1, exchange.warp), exchange.owner)",
    ),
    Fault(
        "blocks begin without each other",
        KERNEL,
        "if constexpr (V::kClusters)\n        cluster_sync();\n    else\n        cta_sync();",
        "cta_sync();",
    ),
    Fault("blocks end without each other", KERNEL, "if constexpr (kClusters) cluster_sync();", ""),
]


def _check(library):
    for case in CASES:
        check(library, case)


KERNEL_WITH_FAULTS = Kernel("kernels/conv1x1/products/host.cpp", _check, FAULTS, "-w")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert KERNEL_WITH_FAULTS.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


def test_nothing_is_noticed_where_nothing_is_planted():
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(KERNEL_WITH_FAULTS.sound()) == {""}
