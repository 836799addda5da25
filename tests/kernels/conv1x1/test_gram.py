"""The Gram matrix of activations and the gradient that it finishes, emulated on the CPU, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.conv1x1 import gram_calls as conv1x1_gram_calls
from tests.kernels.conv1x1 import gram_finish_calls as conv1x1_gram_finish_calls
from tests.kernels.conv1x1.gram_calls import Case
from tests.kernels.conv1x1.gram_finish_calls import Case as FinishCase
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler

F16 = torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/conv1x1/gram/host.cpp")


@pytest.fixture(scope="module")
def finish_library():
    return emulated.library("kernels/conv1x1/gram_finish/host.cpp")


# Blocks of G of 64 or 128 channels, tiles of 128 pixels; ragged: neither divides.  `rows` is one share a row.
CASES = [
    Case(1, 28, 28, 64, rows=3, seed=2),
    Case(1, 14, 14, 128, rows=1, seed=3),
    Case(2, 7, 7, 392, rows=1, seed=4),  # ten blocks on and above the diagonal
    Case(3, 13, 11, 72, dtype=F16, offset=30, rows=2, seed=5),
    Case(2, 13, 11, 264, offset=30, rows=1, workers=2, seed=6),
    Case(2, 14, 14, 64, stride=2, prologue=False, rows=1, seed=7),
    Case(3, 13, 11, 136, stride=2, dtype=F16, offset=50, rows=2, seed=8),
    Case(1, 23, 25, 64, prologue=False, offset=60, rows=5, seed=9),  # a tile a share
    Case(15, 16, 8, 64, rows=1, seed=10),  # more tiles than stages
    Case(1, 1, 1, 8, rows=1, seed=11),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gram(library, case):
    conv1x1_gram_calls.check(library, case)


FINISH_CASES = [
    FinishCase(1, 14, 14, 64, seed=2),
    FinishCase(1, 14, 14, 128, dtype=F16, seed=3),
    FinishCase(2, 7, 7, 512, seed=4),
    FinishCase(3, 13, 11, 72, offset=30, rows=2, seed=5),
    FinishCase(2, 13, 11, 264, offset=30, workers=2, seed=6),
    FinishCase(5, 13, 11, 200, prologue=False, dtype=F16, offset=20, rows=2, seed=7),
    FinishCase(2, 14, 14, 64, prologue=False, rows=2, seed=8),  # a pair of tiles a share
    FinishCase(1, 1, 1, 8, seed=9),
]


@pytest.mark.parametrize("case", FINISH_CASES, ids=str)
def test_finish(finish_library, case):
    conv1x1_gram_finish_calls.check(finish_library, case)


def test_gram_repeats_bitwise_and_is_symmetric(library):
    case = Case(2, 13, 11, 136, offset=30, rows=3)
    inputs = conv1x1_gram_calls.draw(case)
    first = conv1x1_gram_calls.run(library, case, inputs)
    again = conv1x1_gram_calls.run(library, dataclasses.replace(case, seed=17, workers=2), inputs)
    assert all(map(torch.equal, first, again)) and torch.equal(first[2], first[2].T)


def test_finish_repeats_bitwise(finish_library):
    case = FinishCase(3, 13, 11, 136, rows=2)
    inputs = conv1x1_gram_finish_calls.draw(case)
    first = conv1x1_gram_finish_calls.run(finish_library, case, inputs)
    again = dataclasses.replace(case, seed=17, workers=2)
    assert all(map(torch.equal, first, conv1x1_gram_finish_calls.run(finish_library, again, inputs)))


@pytest.mark.parametrize(("channels", "reads"), [(64, 1), (128, 1), (256, 2)])
def test_z_is_read_once_per_row_of_blocks(library, channels, reads):
    """The first tile beside that, once by every CTA: each finds the centre by itself."""
    case = Case(1, 13, 11, channels, rows=1)
    conv1x1_gram_calls.run(library, case, conv1x1_gram_calls.draw(case))
    expected = reads * 2 * channels * (13 * 11 + 128)
    assert library.loaded_bytes() == expected


@pytest.mark.parametrize(("channels", "blocks"), [(64, 1), (128, 1), (264, 3)])
def test_t_is_read_once_and_z_once_more_than_there_are_blocks_of_columns(finish_library, channels, blocks):
    case = FinishCase(1, 13, 11, channels)
    conv1x1_gram_finish_calls.run(finish_library, case, conv1x1_gram_finish_calls.draw(case))
    expected = (1 + blocks + 1) * 2 * channels * 13 * 11
    assert finish_library.loaded_bytes() == expected


def test_nan_and_infinity_reach_the_sums_of_their_channel(library):
    case = Case(1, 20, 10, 72, prologue=False, rows=2)
    inputs = conv1x1_gram_calls.draw(case)
    inputs.z[0, 0, 3, 5] = torch.nan  # in the tile that the centre is taken from
    inputs.z[0, 19, 9, 71] = torch.inf
    center, total, gram = conv1x1_gram_calls.run(library, case, inputs)
    a = inputs.z.reshape(-1, case.c).double() - center
    assert center.isfinite().all()
    for got, expected in ((total, a.sum(0)), (gram, a.T @ a)):
        assert torch.equal(got.isnan(), expected.isnan()) and torch.equal(got.isinf(), expected.isinf())


def test_nan_reaches_its_pixel_alone_and_passes_the_mask(finish_library):
    case = FinishCase(1, 9, 11, 72)
    inputs = conv1x1_gram_finish_calls.draw(case)
    inputs.z[0, 2, 3, 5] = torch.nan
    inputs.t[0, 8, 10, 7] = torch.inf
    inputs.z[0, 8, 10, 7] = 9.0  # open
    inputs.z[0, 0, 0, 3], inputs.t[0, 0, 0, 3] = -99.0, torch.nan  # closed: dropped
    g, partials = conv1x1_gram_finish_calls.run(finish_library, case, inputs)
    expected = conv1x1_gram_finish_calls.reference(case, inputs).view(case.size)
    assert expected[0, 2, 3].isnan().any() and not expected[0, 0].isnan().any()
    assert torch.equal(g.isnan(), expected.isnan()) and torch.equal(g.isinf(), expected.isinf())
    assert torch.equal(partials[0, 0].isnan(), expected[0, 2, 3].isnan())


def test_centered_variance_of_channels_far_from_zero(library):
    """At 60 deviations from zero, where a raw Gram matrix in float32 has lost three digits."""
    case = Case(8, 16, 16, 64, prologue=False, offset=60, rows=3)
    inputs = conv1x1_gram_calls.draw(case)
    center, total, gram = (v.double() for v in conv1x1_gram_calls.run(library, case, inputs))
    a = inputs.z.reshape(-1, case.c).double()
    average = total / len(a)
    var = gram.diagonal() / len(a) - average**2
    torch.testing.assert_close(center + average, a.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, a.var(0, correction=0), rtol=2e-6, atol=0)


def test_rows_that_the_gpu_fills(library, finish_library):
    assert library.conv1x1_gram_rows(32, 56, 56, 64, 1, 132) == 132
    assert library.conv1x1_gram_rows(32, 14, 14, 256, 1, 132) == 44
    assert library.conv1x1_gram_rows(256, 7, 7, 512, 1, 132) == 13
    assert library.conv1x1_gram_rows(1, 14, 14, 64, 1, 132) == 2
    assert finish_library.conv1x1_gram_finish_rows(32, 56, 56, 64, 132) == 132
    assert finish_library.conv1x1_gram_finish_rows(32, 14, 14, 256, 132) == 25
    assert finish_library.conv1x1_gram_finish_rows(32, 28, 28, 256, 132) == 66


REFUSED = {
    "12 channels": (Case(1, 4, 4, 12, rows=1), {}, "z has 12 channels, and the kernel takes multiples of 8"),
    "stride": (Case(1, 4, 4, 64, rows=1, stride=3), {}, "stride 3 is neither 1 nor 2"),
    "rows": (Case(1, 4, 4, 64, rows=2), {}, "partials has 2 rows for 1 tiles"),
    "norm": (Case(1, 4, 4, 64, rows=1), {"in_scale": None}, "one of in_scale and in_shift is missing"),
    "z": (Case(1, 4, 4, 64, rows=1), {"z": None}, "z is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_gram_refuses_in_words(library, name):
    case, changes, reason = REFUSED[name]
    inputs = dataclasses.replace(conv1x1_gram_calls.draw(case), **changes)
    with pytest.raises(EmulationError, match=r"ValueError: conv1x1_gram of \(1, 4, 4, .*" + reason):
        conv1x1_gram_calls.run(library, case, inputs)


EXACT_REFUSED = {
    "12 channels": (Case(1, 4, 4, 12), {}, 1, "z has 12 channels, and the kernel takes multiples of 8"),
    "stride": (Case(1, 4, 4, 64, stride=3), {}, 1, "stride 3 is neither 1 nor 2"),
    "norm": (Case(1, 4, 4, 64), {"in_shift": None}, 1, "one of in_scale and in_shift is missing"),
    "flag": (Case(1, 4, 4, 64), {}, None, "flag is missing"),
}


@pytest.mark.parametrize("name", EXACT_REFUSED)
def test_exact_sums_refuse_in_words(library, name):
    case, changes, flag, reason = EXACT_REFUSED[name]
    inputs = dataclasses.replace(conv1x1_gram_calls.draw(case), **changes)
    with pytest.raises(EmulationError, match=r"ValueError: conv1x1_gram_exact of \(1, 4, 4, .*" + reason):
        conv1x1_gram_calls.run_exact(library, case, inputs, torch.zeros(case.c), flag)


FINISH_REFUSED = {
    "12 channels": (FinishCase(1, 4, 4, 12), {}, "z has 12 channels, and the kernel takes multiples of 8"),
    "rows": (FinishCase(1, 4, 4, 64, rows=2), {}, "partials has 2 rows for 1 pairs of tiles"),
    "norm": (FinishCase(1, 4, 4, 64), {"in_shift": None}, "one of in_scale and in_shift is missing"),
    "constant": (FinishCase(1, 4, 4, 64), {"constant": None}, "constant is missing"),
    "t": (FinishCase(1, 4, 4, 64), {"t": None}, "t is missing"),
}


@pytest.mark.parametrize("name", FINISH_REFUSED)
def test_finish_refuses_in_words(finish_library, name):
    case, changes, reason = FINISH_REFUSED[name]
    inputs = dataclasses.replace(conv1x1_gram_finish_calls.draw(case), **changes)
    with pytest.raises(EmulationError, match=r"ValueError: conv1x1_gram_finish of \(1, 4, 4, .*" + reason):
        conv1x1_gram_finish_calls.run(finish_library, case, inputs)
