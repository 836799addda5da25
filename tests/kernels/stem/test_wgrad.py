"""The gradient of the stem's weight, emulated on the CPU from the sources that nvcc compiles, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.stem.wgrad_calls import Case, check, draw, expected, loaded_bytes, run
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler

F16 = torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/stem/wgrad/host.cpp")


# A tile is 8 x 16 outputs. More tiles than splits and slots, and as many; ragged on every side.
CASES = [
    Case(1, 48, 96, splits=2, seed=2),
    Case(3, 50, 66, splits=1, seed=3),
    Case(2, 17, 33, dtype=F16, splits=8, workers=2, seed=4),
    Case(2, 31, 20, batch=False, splits=3, seed=5),
    Case(1, 9, 7, dtype=F16, seed=0),
    Case(2, 1, 1, splits=2, seed=6),
    Case(1, 2, 130, dtype=F16, batch=False, seed=7),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_rounding(library, case):
    check(library, case)


def test_every_schedule_gives_the_same_bits(library):
    case = Case(2, 50, 66, splits=3)
    inputs = draw(case)
    first = run(library, case, inputs)
    for seed in (11, 12):
        assert torch.equal(run(library, dataclasses.replace(case, seed=seed, workers=2), inputs), first)


@pytest.mark.parametrize("batch", [True, False])
def test_gradients_are_read_once(library, batch):
    case = Case(2, 33, 47, batch=batch, splits=3)
    run(library, case, draw(case))
    n, p, q, filters = case.output_size
    maps, images = loaded_bytes(library)
    assert maps == (1 + batch) * 2 * n * p * q * filters
    assert images <= 1.6 * 2 * 3 * n * case.h * case.w


@pytest.mark.parametrize(("name", "channel"), [("g", 41), ("z", 41), ("x", 2)])
def test_nan_reaches_its_channel_and_no_other(library, name, channel):
    """Wherever the definition has a NaN there is one; other taps of the same channel may have one too."""
    case = Case(2, 19, 35)
    inputs = draw(case)
    getattr(inputs, name)[1, 2, 3, channel] = torch.nan
    dw = run(library, case, inputs).sum(0)
    exact, _ = expected(case, inputs)
    assert exact.isnan().any() and dw[exact.isnan()].isnan().all()
    assert dw.isnan().nonzero()[:, 3 if name == "x" else 0].unique().tolist() == [channel]


def test_splits_give_every_multiprocessor_a_block(library):
    """Of 132, and no more of them than tiles: 14 x 7 of them in an output of 112 x 112."""
    assert library.stem_wgrad_splits(2, 224, 224, 132) == 132
    assert library.stem_wgrad_splits(1, 224, 224, 132) == 98


REFUSED = {
    "no pixels": ({"w": 0}, "x has an extent that is not positive"),
    "element type": ({"type": 2}, "element type 2 is neither bfloat16 .0. nor float16"),
    "2^31 elements": ({"n": 1 << 11, "h": 256, "w": 256}, "the output has 2.31 elements or more"),
    "no images": ({"x": None}, "x is missing"),
    "no gradient": ({"g": None}, "g is missing"),
    "no z": ({"z": None}, "z is missing, and there is a b"),
    "half a norm": ({"b": None}, "one of b and c is missing"),
    "no splits": ({"splits": 0}, "partials must have at least one row"),
    "idle splits": ({"splits": 3}, "partials has 3 rows for 1 tiles"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    changes, reason = REFUSED[name]
    arguments = vars(draw(Case(1, 8, 8))) | {"partials": torch.zeros(1, 64, 7, 7, 3), "splits": 1, "type": 0}
    arguments |= {"n": 1, "h": 8, "w": 8, "seed": 0, "workers": 1} | changes
    with pytest.raises(EmulationError, match="ValueError: stem_wgrad of .*" + reason):
        library.stem_wgrad(*arguments.values())
