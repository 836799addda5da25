"""Faults planted in conv1x1_gram and conv1x1_gram_finish: every one that the emulation can see must be noticed."""

import pytest
import torch

from tests.kernels.conv1x1 import gram_calls as conv1x1_gram_calls
from tests.kernels.conv1x1 import gram_finish_calls as conv1x1_gram_finish_calls
from tests.support import emulated
from tests.support.planted_faults import Fault, Kernel

pytestmark = emulated.needs_compiler

CENTERED, SUMS = "kernels/parts/centered_activations.cuh", "kernels/parts/pixel_sums.cuh"
PLAN, LOAD, ACTIVATIONS, SUM, GRAM = (
    f"kernels/conv1x1/gram/{part}.cuh" for part in ("plan", "load", "activations", "sum", "kernel")
)
EXACT = "kernels/conv1x1/gram/exact.cuh"
FINISH_PLAN, FINISH_LOAD, MULTIPLY, FINISH = (
    f"kernels/conv1x1/gram_finish/{part}.cuh" for part in ("plan", "load", "multiply", "kernel")
)

# The cheapest first: more tiles than stages, so that every barrier is used twice; tiles that are boxes; more rows of
# partials than a thread of the sum takes; a block off the diagonal.  Ragged in pixels and channels.
GRAM_CASES = [
    conv1x1_gram_calls.Case(30, 16, 8, 16, rows=1, seed=3),
    conv1x1_gram_calls.Case(1, 29, 25, 72, stride=2, dtype=torch.float16, prologue=False, offset=30, rows=1),
    conv1x1_gram_calls.Case(1, 65, 65, 8, rows=33),
    conv1x1_gram_calls.Case(2, 13, 11, 136, offset=30, rows=2),
]
EXACT_CASES = [
    conv1x1_gram_calls.Case(1, 9, 7, 40, stride=2, dtype=torch.float16, prologue=False, offset=30, rows=1),
    conv1x1_gram_calls.Case(2, 13, 11, 72, offset=30, rows=3, seed=3),
]
FINISH_CASES = [
    conv1x1_gram_finish_calls.Case(3, 13, 11, 72, dtype=torch.float16, prologue=False, seed=3),
    conv1x1_gram_finish_calls.Case(5, 13, 11, 136, offset=30, rows=2),
]

GRAM_FAULTS = [
    Fault("a rounded once", CENTERED, "unpack<kType>(normalized<kType>(z, norm))", "unpack<kType>(z)"),
    Fault("no ReLU", CENTERED, "value < norm.floor ? norm.floor : value", "value"),
    Fault("a ReLU without a prologue", CENTERED, "prologue.scale ? 0.0f : -INFINITY", "0.0f"),
    Fault("centre of the other channel", CENTERED, "norm.center.value[1]", "norm.center.value[0]"),
    Fault("sums lack half of the lanes", SUMS, "mask < 32", "mask < 16"),
    Fault(
        "sums overwritten before all have read",
        SUMS,
        "named_barrier_sync(barrier, kThreads);\n        return sum;",
        "return sum;",
    ),
    Fault("blocks below the diagonal for those above", PLAN, "(row + column) * V::kChannels", "column * V::kChannels"),
    Fault("operand not awaited until it is free", LOAD, "mbarrier_wait(V::empty(at.slot), at.parity ^ 1);", ""),
    Fault("strided rows taken for dense ones", LOAD, "box.row * problem.stride", "box.row"),
    Fault(
        "too few bytes expected",
        LOAD,
        "mbarrier_arrive_expect_tx(V::full(at.slot), V::kOperandBytes);",
        "mbarrier_arrive_expect_tx(V::full(at.slot), 64);",
    ),
    Fault("no tile for the centre", LOAD, "load_tile<V>(parameters, share, 0, 0);", ""),
    Fault(
        "last pixel lost",
        ACTIVATIONS,
        "arguments.problem.tiles.inside(box, pixel(i))",
        "arguments.problem.tiles.inside(box, pixel(i) + 1)",
    ),
    Fault(
        "pixels outside of the map not zero",
        ACTIVATIONS,
        "a[i].word[pair] = activations::centered<V::kType>(a[i].word[pair], of_pair) & kept;",
        "a[i].word[pair] = activations::centered<V::kType>(a[i].word[pair], of_pair);",
    ),
    Fault("centre over pixels that are not there", ACTIVATIONS, "pixel_count(tiles)", "128.0f"),
    Fault("every channel centred", ACTIVATIONS, "kCenteredBeyond", "0.0f"),
    Fault("centre not rounded", ACTIVATIONS, "widen<V::kType>(narrow<V::kType>(mean))", "mean"),
    Fault("activations not written", ACTIVATIONS, "store_shared(column.address(use, i), a[i]);", ""),
    Fault("both consumers have the same rows", GRAM, "consumer * kSliceBytes", "0"),
    Fault(
        "operands the other way around",
        GRAM,
        "multiply<V>(g, use, column_use, consumer);",
        "multiply<V>(g, column_use, use, consumer);",
    ),
    Fault("activations not visible to wgmma", GRAM, "        fence_proxy_async();", ""),
    Fault("multiplied before all are made", GRAM, "named_barrier_sync(kConsumerBarrier, kConsumerThreads);", ""),
    Fault("operand freed while wgmma reads it", GRAM, "wgmma_wait<1>();", ""),
    Fault(
        "operand never freed", GRAM, "for (int before = use - operands; before < use; ++before) release<V>(before);", ""
    ),
    Fault("last products not awaited", GRAM, "wgmma_wait<0>();", ""),
    Fault("rows of the other eight", GRAM, "i / 2 % 2 * 8", "0"),
    Fault("all shares in one row", GRAM, "share.slot * (int64_t{channels} + 1) * channels", "0"),
    Fault("no barrier after the set-up", GRAM, "cta_sync();", ""),
    Fault(
        "operand empty after one warp",
        GRAM,
        "mbarrier_init(V::empty(stage), kConsumerWarps);",
        "mbarrier_init(V::empty(stage), 1);",
    ),
    Fault("producer keeps its registers", GRAM, "register_budget_decrease<24>();", ""),
    Fault(
        "nothing below the diagonal", SUM, "if (lane == k) p.gram[int64_t{j + k} * p.channels + i] = sum.value[k];", ""
    ),
    Fault("rows of partials lost", SUM, "row += kSumLanes", "row += p.rows"),
    Fault("partials that nobody wrote", SUM, "blocks_right < 0", "blocks_right < -1"),
]

FINISH_FAULTS = [
    Fault("parts taken for neighbours", FINISH_PLAN, "column_slice * kParts * kPartBytes", "column_slice * kPartBytes"),
    Fault(
        "t of the other tile",
        FINISH_PLAN,
        "return z(stage, kConsumers + consumer);",
        "return z(stage, kConsumers + 1 - consumer);",
    ),
    Fault("stage freed once a warpgroup", FINISH_PLAN, "lane_index() == 0", "thread_index() % 128 == 0"),
    Fault("stage not awaited until it is free", FINISH_LOAD, "mbarrier_wait(V::empty(at.slot), at.parity ^ 1);", ""),
    Fault(
        "z of other columns",
        FINISH_LOAD,
        "share.first_column + (i - problem.slices()) * kSliceChannels",
        "(i - problem.slices()) * kSliceChannels",
    ),
    Fault("both tiles the same", FINISH_LOAD, "kConsumers * pair + i", "kConsumers * pair"),
    Fault("scale of other channels", MULTIPLY, "norm[j / 2]", "norm[j % 2]"),
    Fault("trailing bits left out", MULTIPLY, "part * kPartBytes", "0"),
    Fault("second 64 pixels are the first", MULTIPLY, "block * 64 + consumer.warp * 16", "consumer.warp * 16"),
    Fault(
        "slice freed while wgmma reads it",
        MULTIPLY,
        "if (step == 0 && slice > 0) release<V>(use - 1);",
        "if (step == 0 && slice > 0) release<V>(use);",
    ),
    Fault("slice not awaited", MULTIPLY, "mbarrier_wait(V::full(at.slot), at.parity);", ""),
    Fault("last products not awaited", MULTIPLY, "wgmma_wait<0>();", ""),
    Fault("last slice not freed", MULTIPLY, "release<V>(first_use + slices - 1);", ""),
    Fault("no constant", FINISH, "d[i] + add.value[i] + constant.value[i]", "d[i] + add.value[i]"),
    Fault("no mask", FINISH, "is_masked && a.value[i] <= 0.0f", "false"),
    Fault("mask without a prologue", FINISH, "arguments.prologue.scale != nullptr", "true"),
    Fault("columns of the other eight", FINISH, "constant[i / 2]", "constant[i % 2]"),
    Fault("t not awaited", FINISH, "mbarrier_wait(V::full(at.slot), at.parity);", ""),
    Fault("g not visible to TMA", FINISH, "fence_proxy_async();\n", "\n"),
    Fault("g stored before all have written", FINISH, "consumer.sync();", ""),
    Fault("stage freed while TMA stores from it", FINISH, "if (consumer.thread == 0) tma_store_wait_read();", ""),
    Fault("pixels outside of the map summed", FINISH, "!arguments.problem.tiles.inside(box, pixel)", "false"),
    Fault("mean forgotten", FINISH, "z.value[i] - mean.value[i]", "z.value[i]"),
    Fault("no barrier after the set-up", FINISH, "cta_sync();", ""),
    Fault("all shares in one row", FINISH, "share.slot * int64_t{2} * channels", "0"),
]
EXACT_FAULTS = [
    Fault("summed whatever the flag says", EXACT, "if (load_from<int>(problem.flag) == 0) return;", ""),
    Fault("strided rows taken for dense ones", EXACT, "line * stride", "line"),
    Fault("strided columns taken for dense ones", EXACT, "column * stride", "column"),
    Fault("pixels beyond the last", EXACT, "at < problem.pixels()", "true"),
    Fault("columns for rows", EXACT, "operand == 0 ? first_row : first_column", "first_row"),
    Fault(
        "no barrier before the products",
        EXACT,
        "cta_sync();\n        multiply(sums, row, column);",
        "multiply(sums, row, column);",
    ),
    Fault(
        "overwritten while it is read",
        EXACT,
        "multiply(sums, row, column);\n        cta_sync();",
        "multiply(sums, row, column);",
    ),
    Fault("a share's groups next to each other", EXACT, "group += problem.rows", "++group"),
    Fault("all shares in one row", EXACT, "slot * (channels + 1) * channels", "0"),
    Fault(
        "sums in float32",
        EXACT,
        "sums.g[i][j] += double{a.value[i]} * double{b.value[j]};",
        "sums.g[i][j] = static_cast<float>(sums.g[i][j] + double{a.value[i]} * double{b.value[j]});",
    ),
    Fault(
        "totals of the columns", EXACT, "sums.total[i] += double{a.value[i]};", "sums.total[i] += double{b.value[i]};"
    ),
    Fault("centre forgotten", EXACT, "activations::centered<kType>(a.word[pair], norm)", "a.word[pair]"),
    Fault("a chunk's second half lost", EXACT, "to + sizeof(Floats4)", "to"),
]
# Operands in registers are read when wgmma is issued, on a GPU until it is complete.
UNSEEN = [
    Fault(
        "fragments overwritten while wgmma reads them", MULTIPLY, "wgmma_wait<1>();", "if (step == 0) wgmma_wait<1>();"
    )
]


def _check_gram(library):
    for case in GRAM_CASES:
        conv1x1_gram_calls.check(library, case)


def _check_exact(library):
    for case in EXACT_CASES:
        conv1x1_gram_calls.check_exact(library, case)


def _check_finish(library):
    for case in FINISH_CASES:
        conv1x1_gram_finish_calls.check(library, case)


GRAM_KERNEL = Kernel("kernels/conv1x1/gram/host.cpp", _check_gram, GRAM_FAULTS, "-w")
EXACT_KERNEL = Kernel("kernels/conv1x1/gram/host.cpp", _check_exact, EXACT_FAULTS, "-w")
FINISH_KERNEL = Kernel("kernels/conv1x1/gram_finish/host.cpp", _check_finish, FINISH_FAULTS + UNSEEN, "-w")


@pytest.mark.parametrize("fault", GRAM_FAULTS, ids=lambda fault: fault.name)
def test_fault_is_noticed(fault):
    assert GRAM_KERNEL.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", EXACT_FAULTS, ids=lambda fault: fault.name)
def test_fault_in_the_exact_sums_is_noticed(fault):
    assert EXACT_KERNEL.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", FINISH_FAULTS, ids=lambda fault: fault.name)
def test_fault_in_the_finish_is_noticed(fault):
    assert FINISH_KERNEL.outcome(fault) != "", f"no case noticed {fault.faulty!r} for {fault.sound!r}"


@pytest.mark.parametrize("fault", UNSEEN, ids=lambda fault: fault.name)
def test_fault_that_cannot_be_seen(fault):
    """Kept true: a fault that the emulation learns to see belongs in the list above."""
    assert FINISH_KERNEL.outcome(fault) == ""


@pytest.mark.parametrize("kernel", [GRAM_KERNEL, EXACT_KERNEL, FINISH_KERNEL], ids=("gram", "exact", "finish"))
def test_nothing_is_noticed_where_nothing_is_planted(kernel):
    """With every switch off, the sources with the faults in them are the sound kernel."""
    assert set(kernel.sound()) == {""}
