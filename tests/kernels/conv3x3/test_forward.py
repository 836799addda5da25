"""conv3x3_halo, its own source on the host emulation, against float64."""

import dataclasses

import pytest
import torch

from tests.kernels.conv3x3.forward_calls import (
    Case,
    activation,
    check,
    check_map,
    check_partials,
    convolution,
    expected,
    loaded_bytes,
    make_inputs,
    run,
)
from tests.support import emulated

pytestmark = emulated.needs_compiler

# Where 3x3 convolutions stand in ResNets, the last three in ResNet-18 and 34.
RESNET = [
    Case(64, 1, 2, 56, 56),
    Case(64, 2, 1, 56, 56, epilogue="act"),
    Case(128, 1, 1, 28, 28, epilogue="act", residual=True),
    Case(128, 2, 1, 56, 56),
    Case(256, 1, 2, 14, 14),
    Case(256, 2, 1, 28, 28, epilogue="act"),
    Case(512, 1, 3, 7, 7, epilogue="act", residual=True),
    Case(512, 2, 2, 14, 14),
    Case(64, 2, 1, 56, 56, filters=128),
    Case(128, 2, 1, 28, 28, epilogue="act", filters=256),
    Case(256, 2, 2, 14, 14, prologue="", filters=512),
]


@pytest.mark.parametrize("case", RESNET, ids=str)
def test_resnet_sizes_within_rounding_and_loads(case):
    """float64 within the output's rounding, and each input byte out of global memory at most 1.5 times."""
    outputs = check(case)
    assert outputs.y.isfinite().all()
    read_once = case.n * case.h * case.w * case.channels * 2
    assert read_once <= loaded_bytes() <= 1.5 * read_once


# One case for each thing that can go wrong: maps smaller than a tile, ragged on every side, one pixel; images that
# begin and end within a tile; more blocks than tiles and fewer; every form of prologue and epilogue, both types.
ODD = [
    Case(64, 1, 1, 1, 1, blocks=3),
    Case(64, 1, 3, 7, 7, prologue="packed", seed=1),
    Case(64, 1, 2, 33, 13, torch.float16, "packed", "act", residual=True, blocks=3, seed=2),
    Case(64, 1, 5, 2, 9, prologue="", epilogue="act", relu=False, blocks=1),
    Case(64, 1, 1, 20, 20, torch.float16, seed=3),
    Case(64, 2, 2, 13, 21, prologue="packed", seed=1),
    Case(64, 2, 3, 1, 2, prologue="", epilogue="act", residual=True),
    Case(64, 2, 1, 34, 17, torch.float16, "float32", "act", blocks=3, seed=2),
    Case(128, 1, 1, 9, 11, torch.float16, "packed", seed=1),
    Case(128, 1, 2, 35, 5, epilogue="act", residual=True, relu=False, blocks=3, seed=2),
    Case(128, 1, 3, 2, 17, prologue=""),
    Case(128, 2, 2, 7, 6, torch.float16, "packed", "act", residual=True, seed=1),
    Case(128, 2, 1, 35, 9, seed=2, blocks=1),
    Case(256, 1, 3, 5, 10, torch.float16, "", "act", residual=True, seed=1),
    Case(256, 1, 1, 17, 3, prologue="packed", blocks=3),
    Case(256, 2, 3, 3, 3, epilogue="act", seed=1),
    Case(256, 2, 1, 12, 19, torch.float16, "packed"),
    Case(512, 1, 1, 4, 9, prologue="packed", seed=1),
    Case(512, 1, 5, 3, 2, torch.float16, epilogue="act", residual=True, blocks=1),
    Case(512, 2, 1, 5, 18, torch.float16, "packed", seed=1),
    Case(512, 2, 3, 4, 3, prologue="", epilogue="act", residual=True),
    Case(64, 2, 2, 35, 19, torch.float16, "", "act", residual=True, seed=1, filters=128),
    Case(64, 2, 3, 1, 3, prologue="packed", blocks=3, filters=128),
    Case(128, 2, 2, 13, 17, torch.float16, "packed", blocks=1, seed=2, filters=256),
    Case(256, 2, 3, 5, 10, epilogue="act", relu=False, residual=True, blocks=3, filters=512),
    Case(256, 2, 1, 18, 7, torch.float16, seed=1, filters=512),
]


@pytest.mark.parametrize("case", ODD, ids=str)
def test_odd_sizes_and_every_variant(case):
    check(case)


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 1, 2, 20, 12, prologue="packed"),
        Case(128, 2, 3, 9, 10, epilogue="act", residual=True),
        Case(512, 1, 2, 6, 9),
        Case(128, 2, 3, 9, 10, filters=256),
    ],
    ids=str,
)
def test_every_schedule_gives_the_same_bits(case):
    inputs = make_inputs(case)
    first = run(case, inputs)
    for seed in range(1, 5):
        other = run(dataclasses.replace(case, seed=seed), inputs)
        assert torch.equal(first.y, other.y)
        if first.partials is not None:
            assert torch.equal(first.partials, other.partials)


@pytest.mark.parametrize("rows", [1, 2, 7], ids="{} rows".format)
@pytest.mark.parametrize("channels", [64, 128])
def test_partials_of_any_number_of_rows(channels, rows):
    """Fewer rows than multiprocessors: fewer blocks; more: zeros."""
    case = Case(channels, 1, 2, 30, 17, blocks=3)
    outputs = run(case, make_inputs(case), partial_rows=rows)
    check_partials(case, outputs.y, outputs.partials)
    assert (outputs.partials[3:] == 0).all()


@pytest.mark.parametrize("channels", [64, 256])
def test_statistics_survive_a_large_mean(channels):
    """Mean over deviation of 500: raw sums of squares in float32 would lose every digit of the variance."""
    case = Case(channels, 1, 3, 18, 12, torch.float16, prologue="", epilogue="stats")
    inputs = make_inputs(case)
    inputs.x = (inputs.x * 0.05).to(case.dtype)
    inputs.weight = (inputs.weight * 0.02).to(case.dtype)
    inputs.x[..., 0] = 1
    inputs.weight[..., 0] = 0
    inputs.weight[:, 1, 1, 0] = 20  # the only tap that reads the constant channel: the same sum in every pixel
    outputs = run(case, inputs)
    pixels = outputs.y.double().flatten(0, 2)
    assert (pixels.mean(0) / pixels.std(0).clamp(min=1e-9)).min() > 500
    check_partials(case, outputs.y, outputs.partials)


@pytest.mark.parametrize("prologue", ["", "float32", "packed"], ids="prologue={}".format)
@pytest.mark.parametrize(("channels", "stride"), [(64, 1), (64, 2), (128, 1), (512, 2)])
def test_nan_and_inf_come_out_where_they_belong(channels, stride, prologue):
    case = Case(channels, stride, 2, 9, 11, prologue=prologue, epilogue="act", relu=False)
    inputs = make_inputs(case)
    inputs.x[0, 0, 0, 3] = torch.nan
    inputs.x[1, 8, 10, 40] = torch.inf
    inputs.x[1, 4, 7, 41] = -torch.inf
    outputs = run(case, inputs)
    exact, _ = expected(case, inputs)
    exact = exact.float().to(case.dtype).double()
    assert outputs.y.isnan().any() and not outputs.y.isnan().all()
    clean = make_inputs(case)
    _, slack = expected(case, clean)
    check_map(case, outputs.y, exact.where(~exact.isfinite(), expected(case, inputs)[0]), slack)


@pytest.mark.parametrize("prologue", ["", "float32"], ids="prologue={}".format)
def test_a_nan_with_the_bits_of_the_fill_stays_a_nan_in_float32(prologue):
    """In packed arithmetic the hardware takes it for padding: csrc/emulation/README.md."""
    case = Case(64, 1, 1, 6, 6, prologue=prologue, epilogue="act", relu=False)
    inputs = make_inputs(case)
    inputs.in_shift.zero_()  # below any limit
    inputs.x.view(torch.int16)[0, 3, 3, 5] = 0x7FF7
    assert inputs.x.isnan().sum() == 1
    outputs = run(case, inputs)
    assert outputs.y.isnan().all(dim=3).sum() == 9


def test_a_nan_passes_the_relu():
    case = Case(128, 2, 1, 6, 6, epilogue="act", residual=True)
    inputs = make_inputs(case)
    inputs.residual[0, 1, 2, 100] = torch.nan
    outputs = run(case, inputs)
    assert outputs.y.isnan().nonzero().tolist() == [[0, 1, 2, 100]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_packed_only_where_the_limit_lets_it(dtype):
    """A channel whose shift exceeds the limit is normalised in float32, with its group of eight; the others are not."""
    case = Case(64, 1, 1, 10, 10, dtype, prologue="packed", epilogue="act", relu=False)
    inputs = make_inputs(case)
    inputs.x = (inputs.x + 300).to(dtype)
    inputs.in_shift = -300 * inputs.in_scale
    inputs.in_shift[:32] = 0.25 * inputs.in_scale[:32]
    wide = dataclasses.replace(case, prologue="float32")
    # The shift is 300 in units of x, above the limit of 100: these channels are exact in float32, and off in 16 bits.
    exact = torch.cat((activation(case, inputs)[..., :32], activation(wide, inputs)[..., 32:]), dim=3)
    a = convolution(exact, inputs.weight, 1) * inputs.scale.double() + inputs.shift.double()
    _, slack = expected(wide, inputs)
    check_map(case, run(case, inputs).y, a, slack)


def _call(**changes):
    case = Case(64, 1, 1, 6, 6)
    inputs = make_inputs(case)
    y, partials = torch.empty(case.out_size, dtype=case.dtype), torch.zeros(1, 3, 64)
    arguments = {"x": inputs.x, "weight": inputs.weight, "in_scale": inputs.in_scale, "in_shift": inputs.in_shift}
    arguments |= {"limit": 0.0, "y": y, "partials": partials, "rows": 1, "type": 0, "n": 1, "h": 6, "w": 6, "c": 64}
    arguments |= {"k": 64, "stride": 1, "blocks": 2, "seed": 0, "workers": 1} | changes
    emulated.library("kernels/conv3x3/forward/host.cpp").conv3x3_halo_stats(*arguments.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"c": 96}, "96 channels to 64 with stride 1: it takes 64, 128, 256 or 512 to as many, and with stride 2"),
        ({"k": 128}, "64 channels to 128 with stride 1: it takes"),
        ({"k": 60}, "y has 60 channels, and the kernel takes multiples of 8"),
        ({"c": 60}, "60 channels, and the kernel takes multiples of 8"),
        ({"stride": 3}, "stride 3 is neither 1 nor 2"),
        ({"type": 2}, "element type 2 is neither bfloat16 .0. nor float16"),
        ({"x": None}, "x is missing"),
        ({"x": torch.zeros(1 << 14, dtype=torch.bfloat16)[1:]}, "x begins at an address that is no multiple of 16"),
        ({"weight": torch.zeros(1 << 16, dtype=torch.bfloat16)[4:]}, "weight begins at an address"),
        ({"in_shift": None}, "one of in_scale and in_shift is missing"),
        ({"limit": -1.0}, "packed_limit -1.0* is negative"),
        ({"n": 1 << 14, "h": 64, "w": 64}, "x has 2.31 elements or more"),
        ({"h": 0}, "x has an extent that is not positive"),
        ({"rows": 0}, "partials must have at least one row"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_refused_in_words(changes, said):
    with pytest.raises(emulated.EmulationError, match=f"ValueError: conv3x3_halo_stats of .*: .*{said}"):
        _call(**changes)


def test_the_call_that_the_bad_ones_are_made_of_is_good():
    _call()
