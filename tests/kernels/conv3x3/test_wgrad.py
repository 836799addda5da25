"""conv3x3_halo_wgrad, its own source on the host emulation, against float64."""

import dataclasses

import pytest
import torch

from tests.kernels.conv3x3.wgrad_calls import Case, check, expected, loaded_bytes, make_inputs, run
from tests.support import emulated

pytestmark = emulated.needs_compiler

# Where 3x3 convolutions stand in ResNets, the last two in ResNet-18 and 34; h and w are those of their input.
RESNET = [
    Case(64, 1, 1, 56, 56, splits=2),
    Case(128, 1, 1, 28, 28),
    Case(128, 2, 1, 56, 56),
    Case(256, 1, 1, 14, 14),
    Case(256, 2, 1, 28, 28),
    Case(512, 1, 1, 7, 7, dtype=torch.float16),
    Case(512, 2, 1, 14, 14),
    Case(64, 2, 1, 56, 56, prologue="", filters=128),
    Case(256, 2, 1, 14, 14, prologue="", filters=512),
]


@pytest.mark.parametrize("case", RESNET, ids=str)
def test_resnet_sizes_within_rounding_and_loads(case):
    """float64 within float32's accuracy; each 64 channels of a map are loaded at most 1.5 times for each 64 of the
    other."""
    check(case)
    p, q = ((extent - 1) // case.stride + 1 for extent in (case.h, case.w))
    read_once = 2 * case.channels * case.n * (case.h * case.w + 2 * p * q) * (case.k // 64)
    assert read_once <= loaded_bytes() <= 1.5 * read_once


# One case for each thing that can go wrong: maps smaller than a tile, ragged on every side, one pixel; images that
# begin and end within a tile; more splits than tiles and fewer; every form of both prologues, both types.
ODD = [
    Case(64, 1, 1, 1, 1, splits=2),
    Case(64, 1, 3, 7, 7, prologue="packed", seed=1),
    Case(64, 1, 2, 33, 13, torch.float16, prologue="packed", splits=3, seed=2),
    Case(64, 1, 5, 2, 9, batch=False, prologue=""),
    Case(64, 1, 2, 40, 20, torch.float16, seed=3),
    Case(64, 2, 2, 33, 21, prologue="packed", seed=1),
    Case(64, 2, 3, 1, 2, prologue="", splits=2),
    Case(64, 2, 1, 34, 17, torch.float16, batch=False, splits=3, seed=2),
    Case(128, 1, 2, 19, 11, torch.float16, prologue="", seed=1),
    Case(128, 2, 2, 7, 6, seed=1, splits=2),
    Case(192, 1, 1, 5, 9, seed=2),
    Case(256, 2, 1, 12, 19, torch.float16, batch=False),
    Case(64, 2, 2, 13, 21, torch.float16, splits=2, seed=1, filters=192),
    Case(128, 2, 2, 5, 18, prologue="packed", splits=3, filters=256),
    Case(128, 1, 2, 9, 4, prologue="", filters=64),
]


@pytest.mark.parametrize("case", ODD, ids=str)
def test_odd_sizes_and_every_variant(case):
    check(case)


@pytest.mark.parametrize("case", [Case(64, 1, 2, 20, 20, splits=2), Case(64, 2, 2, 40, 20)], ids=str)
def test_every_schedule_gives_the_same_bits(case):
    inputs = make_inputs(case)
    first = run(case, inputs)
    for seed in range(1, 4):
        assert torch.equal(first, run(dataclasses.replace(case, seed=seed), inputs))


@pytest.mark.parametrize(
    ("channels", "stride", "size", "splits"), [(64, 1, 56, 132), (256, 2, 28, 4), (512, 1, 7, 2), (64, 1, 4, 2)]
)
def test_splits_give_every_multiprocessor_a_block(channels, stride, size, splits):
    """Of 132, and no more of them than tiles: four images of 4 x 4 pixels, 19 rows with the blank ones, are two."""
    n = 256 if size > 4 else 4
    function = emulated.library("kernels/conv3x3/wgrad/host.cpp").conv3x3_halo_wgrad_splits
    assert function(n, size, size, channels, channels * stride, stride, 132) == splits


def test_a_split_without_tiles_leaves_zeros():
    partials = check(Case(64, 1, 1, 4, 4, splits=3))
    assert (partials[1:] == 0).all() and (partials[0] != 0).any()


@pytest.mark.parametrize("name", ["g", "z", "x"])
def test_nan_reaches_its_channel_and_no_other(name):
    """Wherever the definition has a NaN there is one; the taps next to it in the same channel may have one too."""
    case = Case(64, 2, 2, 9, 10, prologue="packed")
    inputs = make_inputs(case)
    getattr(inputs, name)[1, 2, 3, 41] = torch.nan
    dw = run(case, inputs).sum(0)
    exact, _ = expected(case, inputs)
    assert exact.isnan().any() and dw[exact.isnan()].isnan().all()
    hit = dw.isnan().nonzero()[:, 3 if name == "x" else 0].unique()
    assert hit.tolist() == [41]


def _call(**changes):
    inputs = make_inputs(Case(64, 1, 1, 6, 6))
    arguments = {"g": inputs.g, "z": inputs.z, "a": inputs.a, "b": inputs.b, "c_": inputs.c, "x": inputs.x}
    arguments |= {"in_scale": inputs.in_scale, "in_shift": inputs.in_shift, "limit": 0.0}
    arguments |= {"partials": torch.zeros(1, 64, 9, 64), "splits": 1, "type": 0, "n": 1, "h": 6, "w": 6, "c": 64}
    arguments |= {"k": 64, "stride": 1, "seed": 0, "workers": 1} | changes
    emulated.library("kernels/conv3x3/wgrad/host.cpp").conv3x3_halo_wgrad(*arguments.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"c": 96}, "96 channels are no multiple of 64"),
        ({"k": 96}, "96 filters are no multiple of 64"),
        ({"stride": 3}, "stride 3 is neither 1 nor 2"),
        ({"type": 2}, "element type 2 is neither bfloat16 .0. nor float16"),
        ({"g": None}, "g is missing"),
        ({"x": torch.zeros(1 << 14, dtype=torch.bfloat16)[1:]}, "x begins at an address that is no multiple of 16"),
        ({"b": None}, "one of b and c is missing"),
        ({"z": None}, "z is missing, and there is a b"),
        ({"in_shift": None}, "one of in_scale and in_shift is missing"),
        ({"limit": -1.0}, "packed_limit -1.0* is negative"),
        ({"n": 1 << 14, "h": 64, "w": 64}, "x has 2.31 elements or more"),
        ({"h": 0}, "x has an extent that is not positive"),
        ({"splits": 0}, "partials must have at least one row"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_in_words(changes, said):
    with pytest.raises(emulated.EmulationError, match=f"ValueError: conv3x3_halo_wgrad of .*: .*{said}"):
        _call(**changes)


def test_the_call_that_the_bad_ones_are_made_of_is_good():
    _call()
