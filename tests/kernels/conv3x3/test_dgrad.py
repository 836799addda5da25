"""conv3x3_halo_dgrad, its own source on the host emulation, against float64."""

import dataclasses

import pytest
import torch

from tests.kernels.conv3x3.dgrad_calls import (
    Case,
    check,
    check_map,
    check_partials,
    expected,
    loaded_bytes,
    make_inputs,
    run,
)
from tests.support import emulated

pytestmark = emulated.needs_compiler

# Where 3x3 convolutions stand in ResNets, the last three in ResNet-18 and 34; h and w are those of their input.
RESNET = [
    Case(64, 1, 1, 56, 56),
    Case(128, 1, 1, 28, 28),
    Case(128, 2, 1, 56, 56),
    Case(256, 1, 1, 14, 14),
    Case(256, 2, 1, 28, 28),
    Case(512, 1, 2, 7, 7),
    Case(512, 2, 1, 14, 14),
    Case(64, 2, 1, 56, 56, below="block", filters=128),
    Case(128, 2, 1, 28, 28, below="block", filters=256),
    Case(256, 2, 1, 14, 14, below="block", filters=512),
]


@pytest.mark.parametrize("case", RESNET, ids=str)
def test_resnet_sizes_within_rounding_and_loads(case):
    """float64 within the output's rounding, and each byte of g and z out of global memory at most 1.5 times."""
    outputs = check(case)
    assert outputs.dx.isfinite().all()
    read_once = 2 * 2 * torch.Size(case.gradient_size).numel()
    assert read_once <= loaded_bytes() <= 1.5 * read_once


# One case for each thing that can go wrong: maps smaller than a tile, ragged on every side, one pixel, without one of
# the phases; images that begin and end within a tile; more blocks than tiles and fewer; each prologue and epilogue.
ODD = [
    Case(64, 1, 1, 1, 1, blocks=3),
    Case(64, 1, 3, 7, 7, torch.float16, seed=1),
    Case(64, 1, 2, 33, 13, batch=False, blocks=3, seed=2),
    Case(64, 1, 5, 2, 9, below="", blocks=1),
    Case(64, 1, 1, 20, 20, torch.float16, below="sums", seed=3),
    Case(64, 2, 2, 13, 21, seed=1),
    Case(64, 2, 3, 1, 2, batch=False, below=""),
    Case(64, 2, 2, 1, 1),
    Case(64, 2, 2, 30, 36, torch.float16, blocks=1, seed=2),
    Case(64, 2, 2, 6, 1, below="sums"),
    Case(128, 1, 1, 9, 11, torch.float16, seed=1),
    Case(128, 1, 2, 35, 5, batch=False, below="sums", blocks=1, seed=2),
    Case(128, 2, 2, 7, 6, torch.float16, seed=1),
    Case(128, 2, 1, 1, 9, seed=2, blocks=1),
    Case(128, 2, 2, 9, 1, batch=False, below=""),
    Case(256, 1, 3, 5, 10, torch.float16, below="", seed=1),
    Case(256, 1, 1, 17, 3, blocks=3),
    Case(256, 2, 3, 3, 3, batch=False, seed=1),
    Case(256, 2, 1, 12, 19, torch.float16),
    Case(512, 1, 5, 3, 2, torch.float16, below="sums", blocks=1),
    Case(512, 2, 3, 4, 3, seed=1),
    Case(64, 1, 2, 20, 11, below="block", seed=1),
    Case(64, 1, 1, 9, 9, torch.float16, below="skip"),
    Case(64, 1, 2, 9, 9, batch=False, below="out", blocks=1),
    Case(128, 1, 2, 13, 10, torch.float16, below="block", seed=2),
    Case(256, 1, 1, 11, 7, below="block", seed=1),
    Case(512, 1, 2, 5, 4, below="block"),
    Case(64, 1, 2, 20, 11, torch.float16, below="masked block", blocks=1, seed=2),
    Case(128, 1, 1, 9, 9, below="masked skip", batch=False, seed=1),
    Case(256, 1, 1, 17, 9, below="masked block"),
    Case(512, 1, 1, 6, 3, torch.float16, below="masked block", seed=1),
    Case(64, 2, 2, 35, 19, torch.float16, below="masked block", blocks=1, seed=1, filters=128),
    Case(64, 2, 3, 1, 2, batch=False, below="skip", blocks=3, filters=128),
    Case(64, 2, 2, 66, 9, blocks=1, seed=2, filters=128),
    Case(128, 2, 2, 13, 18, torch.float16, below="block", blocks=1, seed=2, filters=256),
    Case(128, 2, 3, 9, 1, below="skip", filters=256),
    Case(256, 2, 3, 7, 10, below="masked block", blocks=1, filters=512),
    Case(256, 2, 1, 6, 3, torch.float16, below="", seed=1, filters=512),
]


@pytest.mark.parametrize("case", ODD, ids=str)
def test_odd_sizes_and_every_variant(case):
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 1, 2, 20, 12),
        Case(64, 2, 2, 20, 12),
        Case(256, 2, 2, 9, 10),
        Case(64, 2, 2, 20, 12, below="block", filters=128),
    ],
    ids=str,
)
def test_every_schedule_gives_the_same_bits(case):
    inputs = make_inputs(case)
    first = run(case, inputs)
    for seed in range(1, 4):
        other = run(dataclasses.replace(case, seed=seed), inputs)
        assert torch.equal(first.dx, other.dx)
        assert torch.equal(first.partials, other.partials)


@pytest.mark.parametrize("rows", [1, 2, 7], ids="{} rows".format)
def test_partials_of_any_number_of_rows(rows):
    """Fewer rows than multiprocessors: fewer blocks; more: zeros."""
    case = Case(64, 1, 2, 30, 17, blocks=3)
    inputs = make_inputs(case)
    outputs = run(case, inputs, partial_rows=rows)
    check_partials(case, inputs, outputs)


@pytest.mark.parametrize(
    "case",
    [Case(64, 2, 2, 12, 12), Case(128, 1, 2, 12, 12), Case(64, 2, 2, 12, 12, below="skip", filters=128)],
    ids=str,
)
def test_nan_and_infinity_go_where_the_reference_sends_them(case):
    inputs = make_inputs(case)
    inputs.g[0, 0, 0, 3] = torch.nan
    inputs.z[1, 2, 3, 41] = torch.nan
    inputs.g[1, 4, 4, 9] = torch.inf
    outputs = run(case, inputs)
    exact, _ = expected(case, inputs)
    _, slack = expected(case, make_inputs(case))
    assert exact.isnan().any() and not exact.isnan().all()
    check_map(case, outputs.dx, exact, slack)


def test_a_nan_below_lets_the_gradient_pass():
    case = Case(64, 1, 1, 4, 4)
    inputs = make_inputs(case)
    inputs.below_shift[:] = -100
    inputs.below_z[0, 1, 2, 7] = torch.nan
    outputs = run(case, inputs)
    assert outputs.dx.nonzero().tolist() == [[0, 1, 2, 7]]


def test_a_nan_in_what_masks_the_skip_lets_it_pass_and_a_masked_nan_is_dropped():
    case = Case(64, 1, 1, 4, 4, below="masked skip")
    inputs = make_inputs(case)
    inputs.skip_out[:] = 0
    without = run(dataclasses.replace(case, below=""), inputs).dx
    inputs.skip[:] = torch.nan
    assert torch.equal(run(case, inputs).dx, without)
    inputs.skip_out[0, 1, 2, 7] = torch.nan
    assert run(case, inputs).dx.isnan().nonzero().tolist() == [[0, 1, 2, 7]]


def test_a_masked_nan_is_dropped():
    case = Case(64, 1, 1, 4, 4)
    inputs = make_inputs(case)
    inputs.g[:] = torch.nan
    inputs.below_scale[:] = 0
    inputs.below_shift[:32] = -1
    inputs.below_shift[32:] = 1
    outputs = run(case, inputs)
    assert (outputs.dx[..., :32] == 0).all() and outputs.dx[..., 32:].isnan().all()
    assert (outputs.partials[..., :32] == 0).all() and outputs.partials[0, :, 32:].isnan().all()


def _call(**changes):
    case = Case(64, 1, 1, 6, 6)
    inputs = make_inputs(case)
    arguments = {"g": inputs.g, "z": inputs.z, "a": inputs.a, "b": inputs.b, "c_": inputs.c, "weight": inputs.weight}
    arguments |= {"below_z": inputs.below_z, "below_scale": inputs.below_scale, "below_shift": inputs.below_shift}
    arguments |= {"below_mean": inputs.below_mean, "below_out": None, "skip": None, "skip_out": None}
    arguments |= {"dx": torch.empty(case.size, dtype=case.dtype)}
    arguments |= {"partials": torch.zeros(1, 2, 64), "rows": 1, "type": 0, "n": 1, "h": 6, "w": 6, "c": 64}
    arguments |= {"k": 64, "stride": 1, "blocks": 2, "seed": 0, "workers": 1} | changes
    emulated.library("kernels/conv3x3/dgrad/host.cpp").conv3x3_halo_dgrad(*arguments.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"c": 96}, "96 channels to 64 with stride 1: it takes 64, 128, 256 or 512 to as many, and with stride 2"),
        ({"k": 128}, "64 channels to 128 with stride 1: it takes"),
        ({"stride": 3}, "stride 3 is neither 1 nor 2"),
        ({"type": 2}, "element type 2 is neither bfloat16 .0. nor float16"),
        ({"g": None}, "g is missing"),
        ({"g": torch.zeros(1 << 14, dtype=torch.bfloat16)[1:]}, "g begins at an address that is no multiple of 16"),
        ({"b": None}, "one of b and c is missing"),
        ({"z": None}, "z is missing, and there is a b"),
        ({"below_shift": None}, "one of below_scale and below_shift is missing"),
        ({"below_z": None}, "below_z is missing, and there is a below_scale"),
        ({"below_mean": None}, "below_z, below_mean and partials must be given together"),
        ({"partials": None}, "below_z, below_mean and partials must be given together"),
        (
            {"skip": torch.zeros(1 << 14, dtype=torch.bfloat16), "stride": 2},
            "skip and below_out go with stride 1, or with twice as many filters as channels",
        ),
        ({"below_out": torch.zeros(1 << 14, dtype=torch.bfloat16)}, "below_out masks in the place of below_scale"),
        ({"skip_out": torch.zeros(1 << 14, dtype=torch.bfloat16)}, "skip is missing, and there is a skip_out"),
        ({"n": 1 << 14, "h": 64, "w": 64}, "dx has 2.31 elements or more"),
        ({"h": 0}, "dx has an extent that is not positive"),
        ({"rows": 0}, "partials must have at least one row"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_in_words(changes, said):
    with pytest.raises(emulated.EmulationError, match=f"ValueError: conv3x3_halo_dgrad of .*: .*{said}"):
        _call(**changes)


def test_the_call_that_the_bad_ones_are_made_of_is_good():
    _call()
