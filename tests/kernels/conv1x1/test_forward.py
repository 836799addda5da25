"""The Hopper 1x1 convolution, emulated on the CPU from the sources that nvcc compiles, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.conv1x1.forward_calls import (
    Case,
    activated,
    check_act,
    check_stats,
    draw,
    loaded_bytes,
    run_act,
    run_stats,
)
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler

BF16, F16 = torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/conv1x1/forward/host.cpp")


# One tile of pixels is 128; of filters 64 or 128.  Ragged: neither divides; channels that end inside a slice of 64.
ACT_CASES = [
    Case(1, 16, 8, 64, 64),
    Case(1, 56, 56, 64, 256, residual=True, seed=2),
    Case(2, 28, 28, 512, 128, seed=3),
    Case(1, 14, 14, 256, 1024, residual=True, blocks=1, seed=4),
    Case(1, 7, 7, 2048, 512, seed=0),
    Case(3, 13, 11, 72, 136, residual=True, relu=False, blocks=5, seed=5),
    Case(1, 1, 1, 8, 8, residual=True, dtype=F16, seed=6),
    Case(5, 9, 7, 200, 264, dtype=F16, blocks=1, workers=2, seed=7),
    Case(2, 56, 56, 64, 128, stride=2, seed=8),
    Case(3, 13, 11, 72, 136, stride=2, residual=True, seed=9),
    Case(9, 5, 3, 136, 72, stride=2, blocks=1, seed=10),
    Case(2, 14, 14, 256, 64, stride=2, prologue=True, dtype=F16, seed=11),
    Case(2, 28, 28, 64, 256, prologue=True, residual=True, seed=12),
    Case(1, 14, 14, 256, 264, prologue=True, residual=True, blocks=1, seed=13),
    Case(2, 9, 11, 200, 72, prologue=True, relu=False, dtype=F16, seed=14),
    Case(1, 7, 7, 512, 512, prologue=True, residual=True, seed=15),
]


@pytest.mark.parametrize("case", ACT_CASES, ids=str)
def test_scale_shift_residual_relu(library, case):
    check_act(library, case)


STATS_CASES = [
    Case(1, 56, 56, 256, 64, seed=2),
    Case(1, 28, 28, 128, 512, blocks=1, seed=3),
    Case(2, 28, 28, 64, 128, prologue=True, seed=4),
    Case(3, 13, 11, 72, 136, blocks=1, seed=5),
    Case(3, 13, 11, 200, 136, prologue=True, dtype=F16, seed=6),
    Case(3, 13, 11, 72, 136, stride=2, seed=7),
    Case(5, 7, 7, 136, 264, stride=2, prologue=True, blocks=1, workers=2, seed=8),
    Case(1, 1, 1, 8, 8, dtype=F16, seed=9),
    Case(2, 28, 28, 64, 64, offset=60, seed=10),
]


@pytest.mark.parametrize("case", STATS_CASES, ids=str)
def test_statistics(library, case):
    check_stats(library, case)


SPLIT_CASES = [
    Case(1, 7, 7, 512, 128, splits=8, residual=True, blocks=9, seed=2),
    Case(1, 14, 14, 1024, 64, splits=4, blocks=3, seed=3),
    Case(1, 7, 5, 328, 72, splits=4, residual=True, relu=False, dtype=F16, blocks=2, seed=4),
    Case(1, 13, 13, 200, 136, stride=2, splits=2, blocks=1, seed=5),
]


@pytest.mark.parametrize("case", SPLIT_CASES, ids=str)
def test_split_channels(library, case):
    check_act(library, case)


@pytest.mark.parametrize("case", [SPLIT_CASES[0], SPLIT_CASES[2]], ids=str)
def test_splits_repeat_bitwise(library, case):
    inputs = draw(case)
    first = run_act(library, case, inputs)
    for seed in (11, 12):
        again = dataclasses.replace(case, seed=seed, workers=2)
        assert torch.equal(run_act(library, again, inputs), first)


def test_statistics_repeat_bitwise(library):
    case = Case(2, 13, 11, 72, 136, seed=1)
    inputs = draw(case)
    first = run_stats(library, case, inputs)
    again = run_stats(library, dataclasses.replace(case, seed=21, blocks=5, workers=2), inputs)
    assert all(map(torch.equal, first, again))


# (case, blocks of filters that read x): each reads every byte of it once, and nothing but every stride-th pixel.
LOADS = [
    (Case(2, 28, 28, 128, 512), 4),
    (Case(1, 56, 56, 64, 64), 1),
    (Case(1, 14, 14, 256, 512, stride=2, blocks=4), 4),
    (Case(1, 14, 14, 256, 512, stride=2, blocks=5), 8),
    (Case(1, 7, 7, 512, 64, splits=4), 1),
]


@pytest.mark.parametrize(("case", "reads"), LOADS, ids=lambda value: str(value))
def test_each_byte_is_read_once_per_block_of_filters(library, case, reads):
    run_act(library, case, draw(case))
    n, p, q, _ = case.output_size
    assert loaded_bytes(library) == reads * 2 * n * p * q * case.c


def test_nan_and_infinity_reach_their_pixels_and_filters_alone(library):
    case = Case(2, 9, 11, 72, 136, prologue=True, residual=True, seed=3)
    inputs = draw(case)
    inputs.x[0, 2, 3, 5] = torch.nan
    inputs.x[1, 8, 10, 71] = torch.inf
    inputs.weight[17, 40] = torch.nan
    inputs.residual[0, 0, 1, 135] = torch.nan
    inputs.residual[1, 4, 4, 8] = -torch.inf
    expected = activated(case, inputs)
    assert 0 < expected.isnan().sum() < expected.numel()
    torch.testing.assert_close(run_act(library, case, inputs).double(), expected, rtol=2**-8, atol=2e-5, equal_nan=True)


def test_nan_reaches_the_statistics_of_its_tile_alone(library):
    case = Case(1, 20, 20, 64, 64)
    inputs = draw(case)
    inputs.x[0, 0, 0, 0] = torch.nan
    _, partials = run_stats(library, case, inputs)
    assert partials[0, 1:].isnan().all() and not partials[1:].isnan().any() and not partials[:, 0].isnan().any()


def test_heuristic_splits_only_where_processors_are_idle(library):
    def splits(*sizes: int, processors: int = 132) -> int:
        return library.conv1x1_splits(*map(int, sizes), 1, processors)

    assert splits(1, 7, 7, 2048, 512) == 8  # 8 tiles of 64 filters; 4 slices a block at least
    assert splits(1, 14, 14, 1024, 256) == 4
    assert splits(1, 56, 56, 256, 64) == 1
    assert splits(256, 7, 7, 2048, 512) == 1
    assert splits(1, 7, 7, 2048, 512, processors=2) == 1


REFUSED = {
    "12 channels": (Case(1, 4, 4, 12, 64), {}, "12 channels, and the kernel takes multiples of 8"),
    "20 filters": (Case(1, 4, 4, 64, 20), {}, "20 channels, and the kernel takes multiples of 8"),
    "stride 3": (Case(1, 4, 4, 64, 64, stride=3), {}, "stride 3 is neither 1 nor 2"),
    "9 splits of 8": (Case(1, 4, 4, 512, 64, splits=9), {}, "splits is 9, and must be between 1 and the 8 slices"),
    "splits": (Case(1, 4, 4, 512, 64, splits=2, prologue=True), {}, "with in_scale and in_shift it must be 1"),
    "half a norm": (
        Case(1, 4, 4, 64, 64, prologue=True),
        {"in_shift": None},
        "one of in_scale and in_shift is missing",
    ),
    "no scale": (Case(1, 4, 4, 64, 64), {"scale": None}, "scale is missing"),
    "misaligned": (
        Case(1, 4, 4, 64, 64),
        {"x": torch.zeros(4 * 4 * 64 + 1, dtype=BF16)[1:]},
        "x begins at an address that is no multiple of 16 bytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    case, changes, reason = REFUSED[name]
    inputs = dataclasses.replace(draw(case), **changes)
    shape = rf"ValueError: conv1x1_act of \({case.n}, {case.h}, {case.w}, {case.c}, {case.k}\): "
    with pytest.raises(EmulationError, match=shape + ".*" + reason):
        run_act(library, case, inputs)


def test_refuses_maps_of_2_to_the_31_elements(library):
    x = torch.zeros(8)
    with pytest.raises(EmulationError, match="x has 2.31 elements or more"):
        library.conv1x1_act(*[x] * 10, 1, 0, 256, 512, 512, 32, 8, 1, 1, 0, 2, 0, 1)
    with pytest.raises(EmulationError, match="the output has 2.31 elements or more"):
        library.conv1x1_act(*[x] * 10, 1, 0, 256, 512, 512, 8, 64, 1, 1, 0, 2, 0, 1)
