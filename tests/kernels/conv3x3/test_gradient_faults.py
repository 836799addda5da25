"""Faults planted in conv3x3_halo_dgrad and _wgrad: every one that the emulation can see must be noticed.

The parts that it shares with conv3x3_halo have theirs in test_forward_faults.py.
"""

import pytest

from tests.kernels.conv3x3 import dgrad_calls as conv3x3_halo_dgrad_calls
from tests.kernels.conv3x3 import wgrad_calls as conv3x3_halo_wgrad_calls
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PLAN, LOAD, PROLOGUE, EPILOGUE, KERNEL = (
    f"kernels/conv3x3/dgrad/{part}.cuh" for part in ("plan", "load", "prologue", "epilogue", "kernel")
)
WGRAD_PLAN, WGRAD = "kernels/conv3x3/wgrad/plan.cuh", "kernels/conv3x3/wgrad/kernel.cuh"
HALO_WAIT = "mbarrier_wait(P::halo_full(at.slot), at.parity);"
WITHOUT_TILES = "return write_products({}, arguments, share, tap_row, thread_index() % kWarpgroup);"
LAUNCH = "kernels/conv3x3/dgrad/launch.cu"

# Weights in registers; streamed, the slices kept for four phases, more tiles than slots; consumers that share filters.
DGRAD_PLANS = (
    *("64, 64, 1, false", "64, 64, 2, false", "256, 256, 1, false", "256, 256, 2, false"),
    *("64, 64, 1, true", "64, 128, 2, true"),
)
PLANS = "-DCONV3X3_HALO_DGRAD_PLANS(PLAN)=" + " ".join(f"PLAN({plan})" for plan in DGRAD_PLANS)
CASES = [
    conv3x3_halo_dgrad_calls.Case(64, 1, 2, 20, 20, blocks=1, seed=1),
    conv3x3_halo_dgrad_calls.Case(64, 2, 2, 35, 17, blocks=1, seed=2),
    conv3x3_halo_dgrad_calls.Case(256, 1, 2, 13, 9, blocks=1, seed=1),
    conv3x3_halo_dgrad_calls.Case(256, 2, 3, 17, 18, blocks=1),
    conv3x3_halo_dgrad_calls.Case(64, 1, 1, 9, 9, batch=False, below="sums", seed=1),
    conv3x3_halo_dgrad_calls.Case(64, 1, 2, 20, 12, below="masked block", blocks=1, seed=1),
    conv3x3_halo_dgrad_calls.Case(64, 2, 2, 35, 19, below="masked block", blocks=1, seed=1, filters=128),
]

FAULTS = [
    # ---- geometry ----
    Fault("rows and columns of a phase swapped", PLAN, "return phase / 2;", "return phase % 2;"),
    Fault("a phase lacks its last taps", PLAN, "(1 + phase_row(phase)) * (1 + phase_column(phase))", "1 + phase % 2"),
    Fault("even rows read the tap above", PLAN, "phase_row(phase) ? 2 * (i / across) : 1", "2 * (i / across)"),
    Fault("odd columns read one tap twice", PLAN, "phase_column(phase) ? 2 * (i % across) : 1", "1"),
    Fault("the tap below reads the same row", PLAN, "tap / 3 / 2", "0"),
    Fault("odd rows are as many as even ones", PLAN, "(height + 1 - phase / 2) / 2", "(height + 1) / 2"),
    Fault("odd columns are as many as even ones", PLAN, "(width + 1 - phase % 2) / 2", "(width + 1) / 2"),
    Fault("phases of dx overlap", LAUNCH, "int64_t{phase / 2} * arguments.width + phase % 2", "int64_t{phase / 2} * 2"),
    # ---- loads ----
    Fault("z's bytes not expected", LOAD, "(1 + has_z) * P::kSliceBytes", "P::kSliceBytes"),
    Fault("halo one column to the right", LOAD, "tile.column - 1", "tile.column"),
    Fault("last halo row not loaded", LOAD, "row < P::kHaloRows", "row < P::kHaloRows - 1"),
    Fault("slot overwritten before it is empty", LOAD, "mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);", ""),
    Fault(
        "z overwritten before it is used",
        LOAD,
        "if (has_z) mbarrier_wait(P::z_empty(z_at.slot), z_at.parity ^ 1);",
        "",
    ),
    Fault(
        "weights overwritten before they are used",
        LOAD,
        "mbarrier_wait(P::weights_empty(at.slot), at.parity ^ 1);",
        "",
    ),
    Fault("taps of the phase before", LOAD, "P::tap(phase, i)", "P::tap(phase / 2 * 2, i)"),
    # ---- prologue ----
    Fault("padding becomes c", LOAD, "inside.has<P>(pixel)", "true"),
    Fault("z of the wrong slot", LOAD, "P::z_slice(use % P::kZSlots)", "P::z_slice(0)"),
    Fault("coefficients of the first slice", LOAD, "slice * kSliceChannels + chunk * kChunkChannels", "chunk * 8"),
    Fault("coefficients of the first half", LOAD, "4 * half", "0"),
    Fault("c forgotten", PROLOGUE, "pair(k.c)", "Floats2{}"),
    Fault("g not awaited", LOAD, "mbarrier_wait(P::halo_full(at.slot), at.parity);", ""),
    Fault("dz not visible to wgmma", LOAD, "fence_proxy_async();", ""),
    Fault(
        "z given back before it was read",
        LOAD,
        "make_dz<P, kType>(arguments, in_map, slice, use, thread);\n            fence_proxy_async();\n"
        "            mbarrier_arrive(P::halo_normalized(at.slot));\n"
        "            mbarrier_arrive(P::z_empty(use % P::kZSlots));",
        "mbarrier_arrive(P::z_empty(use % P::kZSlots)); make_dz<P, kType>(arguments, in_map, slice, use, thread);"
        " fence_proxy_async(); mbarrier_arrive(P::halo_normalized(at.slot));",
    ),
    # ---- multiply ----
    Fault(
        "last tap not accumulated",
        KERNEL,
        "multiply_tap<P, kType>(d, P::weights(0), tap_pixels, i > 0);",
        "multiply_tap<P, kType>(d, P::weights(0), tap_pixels, false);",
    ),
    Fault("both consumers with the first one's rows", KERNEL, "P::first_row(consumer) * P::kGroupBytes", "0"),
    Fault("both consumers store the first one's rows", KERNEL, "tile.row += P::first_row(consumer.index);", ""),
    Fault("both consumers with the first one's filters", PLAN, "consumer * kFilterTile", "0"),
    Fault("each consumer with filters of its own", PLAN, "Base::kFilterConsumers > 1", "true"),
    Fault("first slice's sums dropped", KERNEL, "!first_slice || i > 0", "i > 0"),
    Fault(
        "weights given back while wgmma reads them",
        KERNEL,
        "if (i + tile > 0) release(P::weights_empty(turn<P::kStages>(use - 1).slot));",
        "release(P::weights_empty(turn<P::kStages>(use).slot));",
    ),
    Fault("slice given back after the first phase", KERNEL, "phase == left - 1", "phase == 0"),
    Fault(
        "dz not awaited",
        KERNEL,
        "mbarrier_wait(P::halo_normalized(at.slot), at.parity);\n"
        "        consume_phases<P, kType>(parameters, consumer, filters, tile_at<P>(problem, index), at.slot);",
        "consume_phases<P, kType>(parameters, consumer, filters, tile_at<P>(problem, index), at.slot);",
    ),
    # ---- epilogue ----
    Fault("mask of the other channel", EPILOGUE, "fmaf(z, scale[half], shift[half])", "fmaf(z, scale[0], shift[0])"),
    Fault(
        "sum not centred",
        EPILOGUE,
        "fmaf(value, centered, sums[half].dx_z)",
        "fmaf(value, centered + mean[half], sums[half].dx_z)",
    ),
    Fault("blank rows counted", EPILOGUE, "pixels.has_row(tile_row)", "true"),
    Fault("columns outside counted", EPILOGUE, "!pixels.has_column(i)", "false"),
    Fault("tile's sums not added to those before", EPILOGUE, "before.dx + tile.dx", "tile.dx"),
    Fault("sums of one consumer only", EPILOGUE, "set < P::kMomentSets", "set < 1"),
    Fault(
        "sums read before they are there",
        EPILOGUE,
        "named_barrier_sync(kAllConsumersBarrier, kConsumers * kWarpgroup);",
        "",
    ),
    Fault("every row of partials holds the sums", EPILOGUE, "row == block_index()", "true"),
    Fault("skip's bytes not expected", EPILOGUE, "below_z + skip + skip_out + below_out", "below_z + below_out"),
    Fault("skip in every phase", EPILOGUE, "P::kPhases == 1 || phase == 0", "true"),
    Fault("mask of the first phase", EPILOGUE, "parameters.below_out[phase]", "parameters.below_out[0]"),
    Fault("sums of both consumers in one place", EPILOGUE, "P::kMomentSets > 1 ? consumer.index : 0", "0"),
    Fault("skip added after the mask", EPILOGUE, "value(words.below_out[i]) <= 0.0f", "false"),
    Fault("skip of the other pixels", EPILOGUE, "value(words.skip[i])", "value(words.skip[i / 2 * 2])"),
    Fault("skip not masked", EPILOGUE, "!maps.skip_out", "true"),
    Fault("skip's mask of the other pixels", EPILOGUE, "value(words.skip_out[i])", "value(words.skip_out[i / 2 * 2])"),
    Fault("skip's mask and the block's in one buffer", PLAN, "skip(2 * kConsumers + consumer)", "skip_out(consumer)"),
    Fault(
        "maps not awaited",
        EPILOGUE,
        "mbarrier_wait(P::residual_full(consumer.index), consumer.residual_uses++ % 2);",
        "consumer.sync();",
    ),
    Fault("dx not visible to TMA", EPILOGUE, "fence_proxy_async();", ""),
    Fault("dx written while TMA stores it", EPILOGUE, "tma_store_wait_read();", ""),
    # ---- roles ----
    Fault("sums not set to zero", KERNEL, "store_shared(P::sums(0, i), Sums{});", ";"),
    Fault("store not awaited at the end", KERNEL, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("producer keeps its registers", KERNEL, "register_budget_decrease<P::kProducerRegisters>();", ""),
]


# More tiles than slots; ragged on both sides, with blank rows within a tile; both prologues.
WGRAD_CASES = [
    conv3x3_halo_wgrad_calls.Case(64, 1, 4, 18, 11, seed=1),
    conv3x3_halo_wgrad_calls.Case(128, 2, 3, 19, 21, prologue="packed", splits=2, seed=2, filters=192),
    conv3x3_halo_wgrad_calls.Case(64, 1, 4, 18, 11, batch=False, prologue="", seed=1),
    conv3x3_halo_wgrad_calls.Case(64, 1, 1, 4, 4, splits=2),
]

WGRAD_FAULTS = [
    Fault("filters and channels swapped", WGRAD_PLAN, "pair / slices", "pair % slices"),
    Fault("splits overlap", WGRAD_PLAN, "block_index() / pairs", "0"),
    Fault("as many filters as channels", WGRAD_PLAN, "arguments.filters / kFilterTile", "slices"),
    Fault(
        "partials of the split before overwritten",
        WGRAD,
        "static_cast<int64_t>(share.split) * arguments.filters",
        "share.split * arguments.channels",
    ),
    Fault("z's bytes not expected", WGRAD, "(1 + has_z) * P::kGradientBytes", "P::kGradientBytes"),
    Fault("slot overwritten before it is empty", WGRAD, "mbarrier_wait(P::halo_empty(at.slot), at.parity ^ 1);", ""),
    Fault("first filters for every block", WGRAD, "share.filter_slice * kFilterTile", "0"),
    Fault("blank rows not empty", WGRAD, "row < problem.out_height && image < problem.images", "true"),
    Fault("columns outside not empty", WGRAD, "pixel % kTileColumns < columns", "true"),
    Fault(
        "coefficients of the first filters",
        WGRAD,
        "first_filter + chunk * kChunkChannels + 4 * half",
        "chunk * 8 + 4 * half",
    ),
    Fault("norm of the first channels", WGRAD, "arguments.in_scale + first_channel", "arguments.in_scale"),
    Fault("norm in float32 of the first channels", WGRAD, "arguments.in_shift + channel", "arguments.in_shift"),
    Fault("gradient not awaited", WGRAD, "mbarrier_wait(P::gradient_full(at.slot), at.parity);", ""),
    Fault(
        "x not awaited before its prologue",
        WGRAD,
        HALO_WAIT + "\n        if (arguments.in_scale)\n            make_activations<P, kType>(arguments, tile,"
        " share.channel_slice * kSliceChannels, at.slot, thread);",
        "if (arguments.in_scale) make_activations<P, kType>(arguments, tile, share.channel_slice * kSliceChannels,"
        " at.slot, thread);",
    ),
    Fault("operands not visible to wgmma", WGRAD, "fence_proxy_async();", ""),
    Fault("tap row of the first warpgroup", WGRAD, "tap_row * P::kRowBytes", "0"),
    Fault("tap column of the first", WGRAD, "P::tap_offset(column)", "P::tap_offset(0)"),
    Fault(
        "a tile's pixels twice",
        WGRAD,
        "advanced(gradient, step * 2 * P::kGroup)",
        "advanced(gradient, step * P::kGroup)",
    ),
    Fault("tiles before dropped", WGRAD, "!first_tile || step > 0", "step > 0"),
    Fault("operands not awaited", WGRAD, "mbarrier_wait(P::halo_normalized(at.slot), at.parity);", ""),
    Fault("slot given back while wgmma reads it", WGRAD, "turn<P::kSlots>(use - 1).slot", "turn<P::kSlots>(use).slot"),
    Fault("last tile not awaited", WGRAD, "wgmma_wait<0>();", ""),
    Fault("rows of a product swapped", WGRAD, "i / 2 % 2 * 8", "i % 2 * 8"),
    Fault("a split without tiles leaves its row as it was", WGRAD, WITHOUT_TILES, "return;"),
    Fault("no fence after the mbarriers' set-up", WGRAD, "mbarrier_init_fence();", ""),
    Fault("no barrier after the set-up", WGRAD, "cta_sync();", ""),
    Fault("producer keeps its registers", WGRAD, "register_budget_decrease<kProducerRegisters>();", ""),
]


# The warps that make dz await x too, and in the emulator what they have seen the consumers then see.
UNSEEN = [
    Fault("x not awaited where it has no prologue", WGRAD, "if (!arguments.in_scale) " + HALO_WAIT, ""),
]


def _check_dgrad(library):
    for case in CASES:
        conv3x3_halo_dgrad_calls.check(case, library)


def _check_wgrad(library):
    for case in WGRAD_CASES:
        conv3x3_halo_wgrad_calls.check(case, library)


KERNELS = {
    "conv3x3_halo_dgrad": Kernel("kernels/conv3x3/dgrad/host.cpp", _check_dgrad, FAULTS, PLANS, "-w"),
    "conv3x3_halo_wgrad": Kernel("kernels/conv3x3/wgrad/host.cpp", _check_wgrad, WGRAD_FAULTS + UNSEEN, PLANS, "-w"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_in_dgrad_is_noticed(fault):
    assert KERNELS["conv3x3_halo_dgrad"].outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", WGRAD_FAULTS, ids=lambda fault: fault.name)
def test_fault_in_wgrad_is_noticed(fault):
    assert KERNELS["conv3x3_halo_wgrad"].outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert KERNELS["conv3x3_halo_wgrad"].outcome(fault) == ""


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_noticed_where_nothing_is_planted(kernel):
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(KERNELS[kernel].sound()) == {""}
