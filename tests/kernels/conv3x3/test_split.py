"""conv3x3_halo_split, its own source on the host emulation, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fused_resnet.backends import cuda, reference
from fused_resnet.shapes import ConvShape
from tests.kernels.conv3x3.forward_calls import check_map, expected, make_inputs
from tests.kernels.conv3x3.split_calls import Case, ask, check, run
from tests.support import emulated, emulated_extension
from tests.support.cases import ConvCase
from tests.support.parity import assert_parity

pytestmark = emulated.needs_compiler

F16 = torch.float16

# Where ResNets have 3x3 convolutions, at one image: every number of splits that the heuristic gives, and some between.
RESNET = [
    Case(512, 1, 1, 7, 7, residual=True, splits=8, blocks=64),
    Case(512, 1, 1, 7, 7, F16, splits=3, blocks=5, seed=1),
    Case(512, 2, 1, 14, 14, splits=8, blocks=64, seed=2),
    Case(256, 1, 1, 14, 14, residual=True, splits=4, blocks=64, seed=3),
    Case(256, 2, 1, 28, 28, F16, splits=4, blocks=10, seed=4),
    Case(128, 1, 1, 28, 28, splits=2, blocks=64, seed=5),
    Case(128, 2, 1, 56, 56, splits=1, blocks=32),
    Case(64, 1, 1, 16, 24, residual=True, blocks=6, seed=6),
    Case(256, 2, 1, 14, 14, splits=4, blocks=64, filters=512),
]
# Ragged in rows and columns, images that share a tile, one pixel; more blocks than work and fewer, so that a block has
# several tiles, some of whose splits do not come last.
ODD = [
    Case(64, 1, 3, 2, 9, blocks=1, residual=True, weights_ready=True),
    Case(64, 2, 1, 1, 1, F16, relu=False, blocks=3, seed=1),
    Case(128, 1, 3, 5, 10, F16, residual=True, splits=2, blocks=1, seed=2),
    Case(128, 2, 2, 13, 21, residual=True, relu=False, splits=2, blocks=3, seed=3),
    Case(192, 1, 2, 9, 7, splits=2, blocks=2, seed=4, weights_ready=True),
    Case(256, 1, 2, 3, 3, residual=True, splits=3, blocks=2, seed=5),
    Case(320, 2, 1, 6, 19, F16, splits=5, blocks=7, seed=6),
    Case(256, 1, 1, 9, 4, residual=True, splits=1, blocks=1, seed=7),
    Case(128, 2, 2, 9, 17, F16, residual=True, splits=2, blocks=3, seed=1, filters=256),
    Case(192, 1, 1, 5, 9, splits=3, blocks=2, seed=2, filters=64),
]


@pytest.mark.parametrize("case", RESNET + ODD, ids=str)
def test_within_rounding(case):
    check(case)


@pytest.mark.parametrize("case", [RESNET[1], ODD[3]], ids=str)
def test_the_bits_do_not_depend_on_who_comes_last(case):
    inputs = make_inputs(case)
    first = run(case, inputs)
    for seed, blocks, workers in ((11, 1, 1), (12, 7, 2), (13, 100, 2)):
        again = dataclasses.replace(case, seed=seed, blocks=blocks, workers=workers)
        assert torch.equal(run(again, inputs), first)


@pytest.mark.parametrize("case", [RESNET[0], RESNET[3], RESNET[6]], ids=str)
def test_each_block_of_filters_reads_its_slices_once(case):
    """With the halos of tiles of 8 x 8 pixels; the splits of a tile share its slices and read none twice."""
    run(case, make_inputs(case))
    read_once = case.n * case.h * case.w * case.channels * 2
    reads = ask("loaded_bytes") / read_once / (case.channels // 64)
    assert 1 <= reads <= (10 / 8) ** 2


def test_nan_and_infinity_come_out_where_they_belong():
    case = Case(128, 1, 2, 9, 11, relu=False, residual=True, splits=2)
    inputs = make_inputs(case)
    inputs.x[0, 0, 0, 3] = torch.nan
    inputs.x[1, 4, 7, 100] = torch.inf
    inputs.residual[1, 8, 10, 5] = -torch.inf
    exact, slack = expected(case, inputs)
    assert 0 < exact.isnan().sum() < exact.numel()
    check_map(case, run(case, inputs), exact, expected(case, make_inputs(case))[1])


def test_splits_only_where_processors_are_idle():
    def splits(n: int, h: int, w: int, c: int, stride: int, filters: int = 0, processors: int = 132) -> int:
        return ask("conv3x3_halo_splits", n, h, w, c, filters or c, stride, processors)

    assert splits(1, 7, 7, 512, 1) == 8
    assert splits(1, 14, 14, 512, 2) == 8
    assert splits(1, 14, 14, 256, 1) == 4
    assert splits(1, 14, 14, 256, 2, filters=512) == 4  # no more than slices
    assert splits(1, 56, 56, 64, 2, filters=128) == 1
    assert splits(1, 28, 28, 128, 1) == 2
    assert splits(4, 7, 7, 512, 1) == 4
    assert splits(16, 7, 7, 512, 1) == 1  # small tiles fill the GPU, whole ones would be 8
    assert splits(128, 7, 7, 512, 1) == 0
    assert splits(1, 56, 56, 64, 1) == 0
    assert splits(1, 7, 7, 512, 1, processors=1) == 0


BACKEND = [
    ConvCase(ConvShape(1, 128, 7, 5, 128, 3, 3, (1, 1), (1, 1)), residual="same", dtype=torch.bfloat16),
    ConvCase(ConvShape(1, 256, 9, 6, 256, 3, 3, (2, 2), (1, 1)), bn="none", act="identity", dtype=F16),
]


@pytest.mark.parametrize("case", BACKEND, ids=lambda case: case.id)
def test_the_backend_shares_tiles_among_idle_processors(case, monkeypatch):
    guards = emulated_extension.install(monkeypatch, emulated_extension.EmulatedExtension(seed=1, blocks=16))
    assert_parity(cuda.conv_scale_shift_act, reference.conv_scale_shift_act, case)
    guards.check()
    assert any(isinstance(guard, emulated_extension.GuardedFloats) for guard in guards.made), "no products: not split"


REFUSED = {
    "96 channels": (Case(96, 1, 1, 4, 4), {}, "96 channels are no multiple of 64"),
    "96 filters": (Case(64, 1, 1, 4, 4, filters=96), {}, "96 filters are no multiple of 64"),
    "stride 3": (Case(64, 3, 1, 4, 4), {}, "stride 3 is neither 1 nor 2"),
    "9 splits": (Case(512, 1, 1, 4, 4, splits=9), {}, "splits is 9, and must be between 1 and the 8 slices"),
    "0 splits": (Case(512, 1, 1, 4, 4, splits=0), {}, "splits is 0, and must be between 1"),
    "half a norm": (Case(64, 1, 1, 4, 4), {"shift": None}, "one of scale and shift is missing"),
    "misaligned": (
        Case(64, 1, 1, 4, 4),
        {"x": torch.zeros(4 * 4 * 64 + 1, dtype=torch.bfloat16)[1:]},
        "x begins at an address that is no multiple of 16 bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(name):
    case, changes, reason = REFUSED[name]
    inputs = dataclasses.replace(make_inputs(case), **changes)
    shape = rf"ValueError: conv3x3_halo_split\w* of \({case.n}, {case.h}, {case.w}, {case.channels}\): "
    with pytest.raises(emulated.EmulationError, match=shape + ".*" + reason):
        run(case, inputs)


def test_products_and_arrivals_are_needed_to_share_a_tile():
    case = Case(128, 1, 1, 4, 4, splits=2)
    x = torch.zeros(1 << 18, dtype=torch.bfloat16)
    for products, arrivals, said in ((None, x, "products is missing"), (x, None, "arrivals is missing")):
        with pytest.raises(emulated.EmulationError, match=said):
            emulated.library("kernels/conv3x3/split/host.cpp").conv3x3_halo_split_act(
                *(x, x, None, None, None, x, products, arrivals, case.splits, 0, *case.extents, 1, 0, 2, 0, 1),
            )
