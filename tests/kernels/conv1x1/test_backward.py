"""conv1x1_backward, its own source on the host emulation, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.conv1x1.backward_calls import check, check_infinite_constant, exact_dx, run
from tests.kernels.conv1x1.forward_calls import UNIT_ROUNDOFF
from tests.kernels.conv1x1.gradient_calls import Case, draw, wgrad
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler
HALF = torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/conv1x1/backward/host.cpp")


# The first convolution of stage 1's blocks: below a projection, inside a chain of blocks, and at the end of one.
RESNET = [
    Case(1, 28, 28, 64, 64, ("skip",), seed=2),
    Case(1, 28, 28, 256, 64, ("skip", "rectified"), seed=3),
    Case(1, 28, 28, 256, 64, ("skip_out", "rectified"), dtype=HALF, blocks=3, workers=2, seed=4),
]

# One case for each thing that can go wrong: one pixel, ragged in pixels, channels and filters, every number of slices
# and of maps, more tiles than stages and as many as blocks.
ODD = [
    Case(1, 1, 1, 8, 8, blocks=1),
    Case(3, 13, 11, 136, 40, ("constant",), dtype=HALF, blocks=1, seed=2),
    Case(2, 13, 11, 72, 64, ("rectified",), blocks=3, seed=3),
    Case(4, 13, 11, 200, 8, ("skip_out",), dtype=HALF, blocks=1, seed=4),
    Case(5, 16, 16, 56, 56, ("skip", "rectified"), blocks=2, seed=5),
]


@pytest.mark.parametrize("case", [*RESNET, *ODD], ids=str)
def test_both_gradients(library, case):
    check(library, case)


def test_every_schedule_gives_the_same_bits(library):
    case = Case(4, 13, 11, 136, 40, ("skip_out", "rectified"))
    inputs = draw(case)
    first = run(library, case, inputs)
    for seed, workers in ((0, 1), (7, 1), (17, 2)):
        again = run(library, dataclasses.replace(case, seed=seed, workers=workers), inputs)
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("with_", [(), ("constant",), ("skip", "rectified"), ("skip_out", "rectified")], ids=str)
def test_every_map_is_read_once(library, with_):
    case = Case(2, 13, 11, 200, 56, with_)
    run(library, case, inputs := draw(case))
    maps = (inputs.g, inputs.z, inputs.x, inputs.skip, inputs.skip_out)
    assert library.loaded_bytes() == 2 * sum(map.numel() for map in maps if map is not None)


def test_nan_and_infinity_go_where_the_reference_sends_them(library):
    case = Case(2, 5, 5, 72, 40, ("skip",), blocks=1)
    inputs = draw(case)
    inputs.g[0, 0, 0, 3] = torch.nan
    inputs.z[1, 4, 4, 30] = torch.inf
    inputs.x[0, 2, 3, 9] = torch.nan
    inputs.skip[1, 2, 2, 70] = torch.nan
    dx, partials = run(library, case, inputs)
    exact, (products, _) = exact_dx(case, inputs), wgrad(case, inputs)
    assert exact.isnan().any() and not exact.isnan().all()
    torch.testing.assert_close(dx.double(), exact, rtol=UNIT_ROUNDOFF[case.dtype], atol=2e-5, equal_nan=True)
    assert products.isnan().any() and not products.isnan().all()
    assert torch.equal(partials[0].isnan(), products.isnan()) and torch.equal(partials[0].isinf(), products.isinf())


def test_an_infinite_constant_is_no_nan_where_there_is_no_pixel(library):
    check_infinite_constant(library)


def test_masks_drop_what_they_close_and_a_nan_lets_pass(library):
    case = Case(1, 4, 4, 64, 64, ("skip_out", "rectified"), blocks=1)
    inputs = draw(case)
    inputs.g[0, 1] = torch.nan
    inputs.x[0, 1, :, ::2] = torch.tensor([0.0, -0.0, torch.nan, -1.0])[:, None]
    inputs.x[0, 1, :, 1::2] = 0
    inputs.skip[0, 2] = torch.nan
    inputs.skip_out[0, 2] = 0
    inputs.skip_out[0, 2, 3, 5] = torch.nan
    inputs.x[0, 2] = 1
    dx, _ = run(library, case, inputs)
    assert dx.isnan().nonzero().tolist() == [[0, 1, 2, i] for i in range(0, 64, 2)] + [[0, 2, 3, 5]]


def test_rows_that_fill_the_gpu(library):
    def rows(*sizes: int) -> int:
        return library.conv1x1_backward_rows(*sizes, 132)

    assert rows(32, 56, 56, 256, 64) == 132
    assert rows(1, 56, 56, 64, 64) == 25


SMALL = Case(1, 4, 4, 64, 64, ("skip_out",), blocks=1)
REFUSED = {
    "264 channels": ({"c": 264}, {}, "264 channels and 64 filters are more than the 256 and 64"),
    "72 filters": ({"k": 72}, {}, "64 channels and 72 filters are more than the 256 and 64"),
    "12 channels": ({"c": 12}, {}, "x has 12 channels, and the kernel takes multiples of 8"),
    "12 filters": ({"k": 12}, {}, "g has 12 channels, and the kernel takes multiples of 8"),
    "rows": ({"blocks": 2}, {}, "partials has 2 rows for 1 tiles; a block without a tile"),
    "no rows": ({"blocks": 0}, {}, "partials must have at least one row"),
    "no x": ({}, {"x": None}, "x is missing"),
    "no b": ({}, {"b": None}, "one of b and c is missing"),
    "no z": ({}, {"z": None}, "z is missing, and there is a b"),
    "no skip": ({}, {"skip": None}, "skip is missing, and there is a skip_out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    changes, missing, said = REFUSED[name]
    case = dataclasses.replace(SMALL, **changes)
    with pytest.raises(EmulationError, match=rf"ValueError: conv1x1_backward of \(1, 4, 4, .*: .*{said}"):
        run(library, case, dataclasses.replace(draw(case), **missing))
