"""conv1x1_wgrad, its own source on the host emulation, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.conv1x1.gradient_calls import Case, check_wgrad, draw, run_wgrad, wgrad
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler
HALF = torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/conv1x1/wgrad/host.cpp")


# Where 1x1 convolutions of C -> K channels begin a block of ResNet-50.
RESNET = [
    Case(1, 28, 28, 64, 64, seed=2),
    Case(1, 28, 28, 256, 64, blocks=3, seed=3),
    Case(1, 14, 14, 512, 128, blocks=1, workers=2, seed=4),
    Case(1, 14, 14, 1024, 256, blocks=1, workers=2, seed=5),
]

# One case for each thing that can go wrong: one pixel, ragged in pixels, channels and filters, more tiles than slots,
# each prologue with both widths of a block's filters, strides over odd sizes.
ODD = [
    Case(1, 1, 1, 8, 8, blocks=1),
    Case(1, 1, 1, 8, 72, ("prologue",), blocks=1, dtype=HALF, seed=2),
    Case(4, 13, 11, 264, 136, ("prologue",), blocks=1, workers=2, seed=3),
    Case(4, 13, 11, 200, 56, ("prologue",), blocks=1, dtype=HALF, seed=4),
    Case(4, 13, 11, 72, 200, ("constant",), blocks=1, dtype=HALF, seed=5),
    Case(4, 13, 11, 136, 64, ("constant", "prologue"), blocks=2, seed=6),
    Case(3, 21, 19, 264, 72, ("prologue",), stride=2, blocks=2, seed=7),
    Case(3, 20, 22, 72, 64, stride=2, dtype=HALF, blocks=1, seed=8),
]


@pytest.mark.parametrize("case", [*RESNET, *ODD], ids=str)
def test_wgrad(library, case):
    check_wgrad(library, case)


@pytest.mark.parametrize("filters", [64, 136])
def test_every_schedule_gives_the_same_bits(library, filters):
    case = Case(3, 13, 11, 72, filters, ("prologue",))
    inputs = draw(case)
    first = run_wgrad(library, case, inputs)
    for seed, workers in ((0, 1), (7, 1), (17, 2)):
        assert torch.equal(first, run_wgrad(library, dataclasses.replace(case, seed=seed, workers=workers), inputs))


@pytest.mark.parametrize(
    ("case", "gradient_reads", "x_reads"),
    [
        (Case(1, 13, 11, 256, 64), 2, 1),  # g and z
        (Case(1, 13, 11, 264, 64, ("constant",)), 2, 1),  # g, by two blocks
        (Case(1, 13, 11, 512, 136), 4, 2),
        (Case(2, 12, 12, 64, 128, stride=2), 2, 0.25),
    ],
    ids=str,
)
def test_bytes_out_of_global_memory(library, case, gradient_reads, x_reads):
    case = dataclasses.replace(case, blocks=1)
    run_wgrad(library, case, inputs := draw(case))
    read = gradient_reads * inputs.g.numel() + x_reads * inputs.x.numel()
    assert library.loaded_bytes() == 2 * read


def test_nan_and_infinity_go_where_the_reference_sends_them(library):
    case = Case(2, 5, 5, 72, 136, ("prologue",), blocks=1)
    inputs = draw(case)
    inputs.g[0, 0, 0, 3] = torch.nan
    inputs.z[1, 4, 4, 70] = torch.inf
    inputs.x[0, 2, 3, 9] = torch.nan
    partials, (exact, _) = run_wgrad(library, case, inputs), wgrad(case, inputs)
    assert exact.isnan().any() and not exact.isnan().all()
    assert torch.equal(partials[0].isnan(), exact.isnan()) and torch.equal(partials[0].isinf(), exact.isinf())


def test_splits_that_fill_the_gpu(library):
    def splits(*sizes: int, processors: int = 132) -> int:
        return library.conv1x1_wgrad_splits(*sizes, processors)

    assert splits(32, 56, 56, 256, 64, 1) == 132
    assert splits(32, 28, 28, 512, 128, 1) == 66
    assert splits(32, 7, 7, 2048, 512, 1) == 4
    assert splits(1, 7, 7, 256, 64, 1) == 1


SMALL = Case(1, 4, 4, 64, 64, ("prologue",), blocks=1)
REFUSED = {
    "splits": ({"blocks": 2}, {}, "partials has 2 rows for 1 tiles; a block without a tile"),
    "no splits": ({"blocks": 0}, {}, "partials must have at least one row"),
    "stride 4": ({"stride": 4}, {}, "stride 4 is neither 1 nor 2"),
    "12 channels": ({"c": 12}, {}, "x has 12 channels, and the kernel takes multiples of 8"),
    "12 filters": ({"k": 12}, {}, "g has 12 channels, and the kernel takes multiples of 8"),
    "no x": ({}, {"x": None}, "x is missing"),
    "no b": ({}, {"b": None}, "one of b and c is missing"),
    "no z": ({}, {"z": None}, "z is missing, and there is a b"),
    "norm": ({}, {"in_scale": None}, "one of in_scale and in_shift is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    changes, missing, said = REFUSED[name]
    case = dataclasses.replace(SMALL, **changes)
    with pytest.raises(EmulationError, match=rf"ValueError: conv1x1_wgrad of \(1, 4, 4, .*: .*{said}"):
        run_wgrad(library, case, dataclasses.replace(draw(case), **missing))
