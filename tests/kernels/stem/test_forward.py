"""The stem's convolution for Hopper, emulated on the CPU from the sources that nvcc compiles, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.stem.forward_calls import (
    Case,
    check_act,
    check_nan,
    check_stats,
    convolved,
    draw,
    loaded_bytes,
    run_act,
    run_stats,
)
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler

BF16, F16 = torch.bfloat16, torch.float16
FILTER_BYTES = 2 * 64 * 7 * 7 * 3


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/stem/forward/host.cpp")


# A tile is 8 x 16 outputs, of 16 x 32 pixels. More tiles than blocks and slots, and fewer; ragged on every side.
ACT_CASES = [
    Case(1, 64, 224, seed=2),
    Case(2, 32, 32, residual=True, blocks=5, seed=3),
    Case(3, 50, 66, relu=False, blocks=1, seed=4),
    Case(5, 17, 33, dtype=F16, residual=True, blocks=1, workers=2, seed=5),
    Case(1, 9, 7, dtype=F16, seed=0),
    Case(2, 1, 1, residual=True, seed=6),
    Case(1, 2, 130, dtype=F16, relu=False, seed=7),
    Case(1, 131, 3, seed=8),
]


@pytest.mark.parametrize("case", ACT_CASES, ids=str)
def test_scale_shift_residual_relu(library, case):
    check_act(library, case)


STATS_CASES = [
    Case(1, 64, 112, seed=2),
    Case(3, 37, 51, blocks=1, seed=3),
    Case(2, 18, 34, dtype=F16, blocks=9, workers=2, seed=4),
    Case(1, 1, 1, dtype=F16, seed=5),
    Case(1, 40, 40, offset=60, seed=6),
]


@pytest.mark.parametrize("case", STATS_CASES, ids=str)
def test_statistics(library, case):
    check_stats(library, case)


@pytest.mark.parametrize("run", [run_act, run_stats], ids=lambda run: run.__name__)
def test_every_schedule_gives_the_same_bits(library, run):
    case = Case(3, 50, 66, seed=1)
    inputs = draw(case)
    first = run(library, case, inputs)
    for seed, blocks in ((11, 1), (12, 3), (13, 40)):
        again = run(library, dataclasses.replace(case, seed=seed, blocks=blocks, workers=2), inputs)
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("case", [Case(1, 64, 224), Case(2, 33, 47, blocks=3)], ids=str)
def test_each_tile_reads_its_halo_and_each_block_the_filters_once(library, case):
    run_act(library, case, draw(case))

    def pixels_read(extent: int, tile: int) -> int:
        """Over the tiles along one axis: the halo of `tile` outputs is 2 * tile + 6 pixels wide at most."""
        starts = range(-3, extent - (extent % 2 == 0) - 3 + 1, 2 * tile)
        size = 2 * (tile - 1) + (8 if tile == 16 else 7)
        return sum(min(start + size, extent) - max(start, 0) for start in starts)

    images = 2 * 3 * case.n * pixels_read(case.h, 8) * pixels_read(case.w, 16)
    assert loaded_bytes(library) == images + case.blocks * FILTER_BYTES


def test_nan_and_infinity_reach_the_pixels_and_filters_that_read_them_alone(library):
    """Above all not through the eighth tap, nor through what pads a pixel to four channels."""
    check_nan(library, Case(2, 31, 45, residual=True, seed=3))


def test_nan_reaches_the_statistics_of_the_tiles_that_read_it_alone(library):
    case = Case(1, 64, 64, seed=4)
    inputs = draw(case)
    inputs.x[0, 0, 0, 0] = torch.nan
    z, partials = run_stats(library, case, inputs)
    assert torch.equal(z.isnan(), convolved(inputs).isnan())
    assert partials[0, 1:].isnan().all() and not partials[1:].isnan().any() and not partials[:, 0].isnan().any()


REFUSED = {
    "no pixels": ({"h": 0}, {}, "x has an extent that is not positive"),
    "element type": ({}, {"type": 2}, "element type 2 is neither bfloat16 .0. nor float16"),
    "2^31 elements": ({"n": 1 << 11, "h": 256, "w": 256}, {}, "the output has 2.31 elements or more"),
    "no images": ({}, {"x": None}, "x is missing"),
    "no scale": ({}, {"scale": None}, "scale is missing"),
    "misaligned": ({}, {"weight": torch.zeros(10000, dtype=BF16)[1:]}, "weight begins at an address that is no"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    sizes, changes, reason = REFUSED[name]
    case = Case(1, 8, 8)
    inputs = draw(case)
    arguments = {"x": inputs.x, "weight": inputs.weight, "scale": inputs.scale, "shift": inputs.shift}
    arguments |= {"residual": None, "y": torch.zeros(case.output_size, dtype=BF16), "type": 0, "n": 1, "h": 8, "w": 8}
    arguments |= {"relu": 1, "blocks": 2, "seed": 0, "workers": 1} | sizes | changes
    with pytest.raises(EmulationError, match="ValueError: stem_act of .*" + reason):
        library.stem_act(*arguments.values())
