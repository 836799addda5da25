"""Faults planted in conv1x1_dgrad and conv1x1_wgrad: every one that the emulation can see must be noticed.

The parts of conv1x1 that they share have theirs in test_forward_faults.py.
"""

import pytest

from tests.kernels.conv1x1.gradient_calls import Case, check_dgrad, check_wgrad
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

PROLOGUE = "kernels/parts/gradient_of_norm.cuh"
PLAN, MULTIPLY, EPILOGUE, KERNEL = (
    f"kernels/conv1x1/dgrad/{part}.cuh" for part in ("plan", "multiply", "epilogue", "kernel")
)
LAUNCH = "kernels/conv1x1/dgrad/launch.cu"
WGRAD_PLAN, WGRAD = "kernels/conv1x1/wgrad/plan.cuh", "kernels/conv1x1/wgrad/kernel.cuh"
WRITE_SUMS = "write_sums<V>(arguments, work.row, work.first_channel + first, consumer);"

# More slices than stages and more tiles than consumers; ragged in pixels, channels and filters; each epilogue, with
# every number of maps; each kind of phases.
DGRAD_CASES = [
    Case(1, 13, 11, 136, 136, ("skip_out", "out", "sums"), blocks=1),
    Case(1, 13, 11, 136, 72, ("skip", "mask"), blocks=1, seed=2),
    Case(2, 9, 6, 72, 72, ("skip", "skip_2", "constant"), blocks=1, seed=3),
    Case(5, 14, 11, 72, 72, ("sums",), stride=2, blocks=1, seed=4),
    Case(2, 10, 9, 72, 72, ("skip_out", "skip_2", "out"), stride=2, seed=5),
    Case(2, 13, 11, 136, 72, blocks=1),
]

DGRAD_FAULTS = [
    # ---- phases ----
    Fault("rows and columns of a phase swapped", LAUNCH, "return phase / column_phases();", "return phase % 2;"),
    Fault("phases overlap", LAUNCH, "extents.row(index) * row + extents.column(index) * channels", "0"),
    Fault("rows of a phase lie densely", LAUNCH, "extents.step() * row", "row"),
    Fault("odd columns are as many as even ones", LAUNCH, "extents.column(i)", "0"),
    Fault("odd rows are as many as even ones", LAUNCH, "extents.row(i)", "0"),
    Fault("a product in every phase", LAUNCH, "i == 0 || extents.stride == 1", "true"),
    Fault("skip in every phase", LAUNCH, "i == 0 || extents.skip_stride == 1", "true"),
    Fault("strided skip read as a dense one", LAUNCH, "stride < extents.step()", "true"),
    # ---- work ----
    Fault("partials' rows of other phases", PLAN, "row % tiles", "row"),
    Fault("every tile of the first phase", PLAN, "row / tiles", "0"),
    Fault(
        "a consumer forgets the other's slices", KERNEL, "slices + slices_of(arguments, at + block_count())", "slices"
    ),
    # ---- loads ----
    Fault("z's bytes expected where there is none", KERNEL, "(has_z ? 0 : kSliceBytes)", "0"),
    Fault("stage overwritten before it is empty", KERNEL, "mbarrier_wait(V::empty(at.slot), at.parity ^ 1);", ""),
    Fault(
        "first filters in every slice",
        KERNEL,
        "load_stage<V>(parameters, work, slice * kSliceChannels, at.slot);",
        "load_stage<V>(parameters, work, 0, at.slot);",
    ),
    Fault("weights of the first channels", KERNEL, "work.first_channel + slice * kSliceChannels", "slice * 64"),
    # ---- prologue ----
    Fault("c forgotten", PROLOGUE, "c.value[i]", "0.0f"),
    Fault("coefficients of the other filters", MULTIPLY, "norm.a[j / 2]", "norm.a[j % 2]"),
    Fault("filters that do not exist have some", MULTIPLY, "first_filter + 8 * half >= arguments.filters", "false"),
    Fault("second half of a slice is the first", MULTIPLY, "half * kHalfSteps + i", "i"),
    Fault("stage not awaited", MULTIPLY, "mbarrier_wait(V::full(at.slot), at.parity);", ""),
    # ---- multiply ----
    Fault("weights of the first step", MULTIPLY, "advanced(weights, step * kStepRowsBytes)", "weights"),
    Fault("weights of the first half", MULTIPLY, "advanced(weights, kHalfSteps * kStepRowsBytes)", "weights"),
    Fault(
        "first slice's sums dropped",
        MULTIPLY,
        "multiply_gradient<V>(d, first, weights, slice > 0);",
        "multiply_gradient<V>(d, first, weights, false);",
    ),
    Fault(
        "channels from 64 on are the first",
        MULTIPLY,
        "matrix_descriptor(V::weights(at.slot), V::kWeightSliceBytes, kAtomBytes, Swizzle::k128B)",
        "matrix_descriptor(V::weights(at.slot), 0, kAtomBytes, Swizzle::k128B)",
    ),
    Fault("turn not awaited", KERNEL, "await_turn<V>(consumer, turns);", ""),
    Fault("turn kept by a tile without a product", KERNEL, "pass_turn<V>(consumer);", ";"),
    # ---- epilogue ----
    Fault("maps' bytes not expected", EPILOGUE, "maps.count * slices * kSliceBytes", "kSliceBytes"),
    Fault(
        "skip of every phase", EPILOGUE, "phase.has_skip ? work.pixels.image : phase.tiles.images", "work.pixels.image"
    ),
    Fault("skip's mask forgotten", EPILOGUE, "maps.skip_out < 0 || !(skip_out.value[j] <= 0.0f)", "true"),
    Fault("skip added after the mask", EPILOGUE, "d[j] + (skips ? skip.value[j] : 0.0f)", "d[j]"),
    Fault("block below does not mask", EPILOGUE, "maps.below_out >= 0 && below_out.value[j] <= 0.0f", "false"),
    Fault(
        "mask of the other channels",
        EPILOGUE,
        "below.masked(dx[j], below_z.value[j], i / 2, j)",
        "below.masked(dx[j], below_z.value[j], i % 2, j)",
    ),
    Fault(
        "second 64 pixels are the first",
        EPILOGUE,
        "&d.block[block][channel / 2 + 2 * i]",
        "&d.block[0][channel / 2 + 2 * i]",
    ),
    Fault("sum not centred", EPILOGUE, "below.value[i] - mean[eight].value[i]", "below.value[i]"),
    Fault("pixels that do not exist are counted", EPILOGUE, "exists >> (2 * block + i % 2) & 1", "true"),
    Fault("sums of one warp", EPILOGUE, "warp < kWarps", "warp < 1"),
    Fault("rows of other tiles", EPILOGUE, "int64_t{2} * row", "int64_t{0}"),
    Fault(
        "warps do not wait for each other's sums",
        EPILOGUE,
        f"consumer.sync();\n    {WRITE_SUMS}\n    consumer.sync();",
        WRITE_SUMS,
    ),
    Fault("maps not awaited", EPILOGUE, "mbarrier_wait(V::maps_full(consumer.index), uses++ % 2);", "consumer.sync();"),
    Fault("dx not visible to TMA", EPILOGUE, "fence_proxy_async();", ""),
    Fault("dx written while TMA stores it", EPILOGUE, "tma_store_wait_read();", ""),
    Fault(
        "store before all have written",
        EPILOGUE,
        "consumer.sync();\n    if (consumer.thread > 0) return;",
        "if (consumer.thread > 0) return;",
    ),
    # ---- roles ----
    Fault("store not awaited at the end", KERNEL, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    Fault("no fence after the mbarriers' set-up", KERNEL, "mbarrier_init_fence();", ""),
    Fault("producer keeps its registers", KERNEL, "register_budget_decrease<24>();", ""),
]

# More tiles than slots, both widths of a block's filters, both prologues, ragged on every side.
WGRAD_CASES = [
    Case(3, 13, 11, 264, 136, ("prologue",), blocks=1),
    Case(5, 13, 11, 72, 56, ("prologue",), blocks=2, seed=2),
    Case(1, 37, 29, 72, 136, stride=2, blocks=1, seed=3),
    Case(4, 13, 11, 136, 64, ("constant",), blocks=1, seed=4),
]

WGRAD_FAULTS = [
    Fault("both consumers have the first filters", WGRAD_PLAN, "kFilterSlices == 1 ? 0 : consumer", "0"),
    Fault("both consumers have the first channels", WGRAD_PLAN, "consumer * kConsumerChannels / kSliceChannels", "0"),
    Fault("splits overlap", WGRAD_PLAN, "block_index() / V::products_tiles(p)", "0"),
    Fault(
        "z's bytes not expected", WGRAD, "has_z ? V::kGradientBytes : V::kGradientBytes / 2", "V::kGradientBytes / 2"
    ),
    Fault("g overwritten before it was read", WGRAD, "mbarrier_wait(V::gradient_empty(at.slot), at.parity ^ 1);", ""),
    Fault("x overwritten before it was read", WGRAD, "mbarrier_wait(V::input_empty(at.slot), at.parity ^ 1);", ""),
    Fault("x of the first channels", WGRAD, "first_channel + slice * kSliceChannels", "slice * kSliceChannels"),
    Fault("strided rows taken for dense ones", WGRAD, "box.row * stride", "box.row"),
    Fault("pixels that do not exist are activated", WGRAD, "arguments.tiles.inside(box, pixel)", "true"),
    Fault("norm of the first channels", WGRAD, "arguments.in_scale + channel", "arguments.in_scale"),
    Fault(
        "coefficients of the first filters",
        WGRAD,
        "first_filter + 8 * eight + lane_index() / 4",
        "8 * eight + lane_index() / 4",
    ),
    Fault("coefficients of the other filters", WGRAD, "norm.a[i % 2]", "norm.a[i / 2]"),
    Fault("operand A's registers swapped", WGRAD, "lane_index() / 16 * 8 + lane_index() % 8", "lane_index() % 16"),
    Fault("g not awaited", WGRAD, "mbarrier_wait(V::gradient_full(gradient.slot), gradient.parity);", ""),
    Fault("g given back before it was read", WGRAD, "warp_sync();", ""),
    Fault("x not awaited", WGRAD, "mbarrier_wait(V::input_full(input.slot), input.parity);", ""),
    Fault("activations not visible to wgmma", WGRAD, "fence_proxy_async();\n", "\n"),
    Fault("activations of the other consumer not awaited", WGRAD, "            consumers_sync();", ";"),
    Fault("pixels of the first step", WGRAD, "advanced(pixels, step * kStepRowsBytes)", "pixels"),
    Fault("tiles before dropped", WGRAD, "!first_tile || step > 0", "step > 0"),
    Fault("products not awaited", WGRAD, "wgmma_wait<0>();", ""),
    Fault("rows of a product swapped", WGRAD, "i / 2 % 2 * 8", "i % 2 * 8"),
    Fault("every split writes the first row", WGRAD, "int64_t{split} * arguments.filters", "0 * arguments.filters"),
    Fault("no fence after the mbarriers' set-up", WGRAD, "mbarrier_init_fence();", ""),
    Fault("no barrier after the set-up", WGRAD, "cta_sync();", ""),
    Fault("producer keeps its registers", WGRAD, "register_budget_decrease<40>();", ""),
]

# Operands in registers are read when wgmma is issued, on a GPU until it is complete.
UNSEEN = [Fault("dz overwritten while wgmma reads it", MULTIPLY, "wgmma_wait<1>();", "")]


def _check_dgrad(library):
    for case in DGRAD_CASES:
        check_dgrad(library, case)


def _check_wgrad(library):
    for case in WGRAD_CASES:
        check_wgrad(library, case)


KERNELS = {
    "conv1x1_dgrad": Kernel("kernels/conv1x1/dgrad/host.cpp", _check_dgrad, DGRAD_FAULTS + UNSEEN, "-w"),
    "conv1x1_wgrad": Kernel("kernels/conv1x1/wgrad/host.cpp", _check_wgrad, WGRAD_FAULTS, "-w"),
}


@pytest.mark.parametrize("fault", DGRAD_FAULTS, ids=lambda fault: fault.name)
def test_fault_in_dgrad_is_noticed(fault):
    assert KERNELS["conv1x1_dgrad"].outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", WGRAD_FAULTS, ids=lambda fault: fault.name)
def test_fault_in_wgrad_is_noticed(fault):
    assert KERNELS["conv1x1_wgrad"].outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert KERNELS["conv1x1_dgrad"].outcome(fault) == ""


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_is_noticed_where_nothing_is_planted(kernel):
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(KERNELS[kernel].sound()) == {""}
