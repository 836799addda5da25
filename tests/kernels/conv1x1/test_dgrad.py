"""conv1x1_dgrad, its own source on the host emulation, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.conv1x1.forward_calls import UNIT_ROUNDOFF
from tests.kernels.conv1x1.gradient_calls import Case, check_dgrad, check_sums, dgrad, draw, run_dgrad
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler
HALF = torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/conv1x1/dgrad/host.cpp")


# As ResNet-50 calls it for a block's first convolution, C -> K channels: inside a chain of blocks, at the end of one,
# and below a projection of stride 2.
RESNET = [
    Case(1, 28, 28, 64, 64, ("skip",), seed=2),
    Case(1, 28, 28, 256, 64, ("skip", "out"), seed=3),
    Case(1, 14, 14, 512, 128, ("skip_out", "out"), seed=4),
    Case(1, 14, 14, 256, 128, ("skip", "skip_2", "out"), seed=5),
    Case(1, 14, 14, 1024, 256, ("skip", "out"), blocks=3, workers=2, seed=6),
    Case(2, 7, 7, 2048, 512, ("skip_out", "out"), blocks=4, workers=2, seed=7),
]

# One case for each thing that can go wrong: one pixel, ragged in pixels, channels and filters, a whole slice of a tile
# that does not exist; without some of the phases; more blocks than tiles and fewer; each epilogue, with four maps too.
ODD = [
    Case(1, 1, 1, 8, 8, blocks=3),
    Case(3, 13, 11, 136, 72, ("constant",), dtype=HALF, blocks=1, seed=2),
    Case(2, 13, 11, 72, 200, ("mask",), blocks=1, seed=3),
    Case(2, 13, 11, 264, 136, ("sums",), dtype=HALF, seed=4),
    Case(2, 13, 11, 72, 72, ("skip_out", "out", "sums"), blocks=1, seed=5),
    Case(1, 13, 11, 200, 8, ("skip_out", "mask"), seed=6),
    Case(2, 9, 10, 72, 136, ("skip_out", "skip_2", "out", "sums"), blocks=1, seed=7),
    Case(2, 9, 10, 136, 72, stride=2, seed=8),
    Case(3, 13, 11, 72, 136, ("mask",), stride=2, dtype=HALF, blocks=1, seed=9),
    Case(2, 10, 9, 72, 72, ("skip_out", "constant"), stride=2, seed=10),
    Case(2, 10, 9, 136, 72, ("skip_out", "skip_2", "out", "sums"), stride=2, blocks=3, workers=2, seed=11),
    Case(2, 1, 9, 72, 72, ("skip", "skip_2"), seed=12),
    Case(2, 9, 1, 72, 72, ("sums",), stride=2, seed=13),
    Case(5, 1, 1, 72, 72, ("skip", "out"), stride=2, dtype=HALF, seed=14),
]


@pytest.mark.parametrize("case", [*RESNET, *ODD], ids=str)
def test_dgrad(library, case):
    check_dgrad(library, case)


@pytest.mark.parametrize(
    "case",
    [Case(3, 13, 11, 136, 200, ("skip_out", "out", "sums")), Case(2, 9, 10, 72, 72, ("mask", "skip"), stride=2)],
    ids=str,
)
def test_every_schedule_gives_the_same_bits(library, case):
    inputs = draw(case)
    first = run_dgrad(library, case, inputs)
    for changes in ({"seed": 5}, {"seed": 17, "blocks": 3, "workers": 2}, {"seed": 0, "blocks": 1}):
        again = run_dgrad(library, dataclasses.replace(case, **changes), inputs)
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize(
    ("case", "maps"),
    [
        (Case(1, 13, 11, 136, 64), 4),  # g and z, for each 128 channels of dx
        (Case(1, 13, 11, 64, 200, ("constant",)), 1),
        (Case(2, 12, 12, 128, 64, ("skip", "skip_2")), 2),
        (Case(2, 12, 12, 64, 64, ("mask",), stride=2), 2),
    ],
    ids=str,
)
def test_bytes_of_g_and_z_out_of_global_memory(library, case, maps):
    run_dgrad(library, case, inputs := draw(case))
    assert library.loaded_bytes() == maps * 2 * inputs.g.numel()


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_and_infinity_go_where_the_reference_sends_them(library, stride):
    case = Case(2, 6, 6, 72, 72, ("skip",), stride=stride)
    inputs = draw(case)
    inputs.g[0, 0, 0, 3] = torch.nan
    inputs.z[1, 2, 2, 41] = torch.nan
    inputs.g[1, 1, 1, 9] = torch.inf
    inputs.skip[1, 5, 5, 70] = torch.nan
    dx, _ = run_dgrad(library, case, inputs)
    exact = dgrad(case, inputs)
    assert exact.isnan().any() and not exact.isnan().all()
    torch.testing.assert_close(dx.double(), exact, rtol=UNIT_ROUNDOFF[case.dtype], atol=2e-5, equal_nan=True)


def test_masks_drop_what_they_close_and_a_nan_lets_pass(library):
    case = Case(1, 4, 4, 64, 64, ("skip_out", "out", "sums"))
    inputs = draw(case)
    inputs.g[0, 1] = torch.nan
    inputs.below_out[0, 1, :, ::2] = torch.tensor([0.0, -0.0, torch.nan, -1.0])[:, None]
    inputs.below_out[0, 1, :, 1::2] = 0
    inputs.skip[0, 2] = torch.nan
    inputs.skip_out[0, 2] = 0
    inputs.skip_out[0, 2, 3, 5] = torch.nan
    inputs.below_out[0, 2] = 1
    dx, partials = run_dgrad(library, case, inputs)
    assert dx.isnan().nonzero().tolist() == [[0, 1, 2, i] for i in range(0, 64, 2)] + [[0, 2, 3, 5]]
    dx[dx.isnan()] = 0
    assert partials.isnan().any(0).nonzero().tolist() == [
        [i, j] for i in range(2) for j in sorted({*range(0, 64, 2), 5})
    ]


def test_a_norm_below_masks_by_its_relu(library):
    case = Case(1, 4, 4, 64, 64, ("mask",))
    inputs = draw(case)
    inputs.g[:] = torch.nan
    inputs.below_scale[:] = 0
    inputs.below_shift[:32], inputs.below_shift[32:] = -1, 1
    inputs.below_z[0, 1, 2, 7] = torch.nan
    dx, _ = run_dgrad(library, case, inputs)
    assert dx[..., 32:].isnan().all() and dx[..., :32].isnan().nonzero().tolist() == [[0, 1, 2, 7]]
    assert (dx[..., :7] == 0).all()


def test_the_sums_are_those_of_dx_as_rounded(library):
    case = Case(1, 5, 5, 64, 64, ("sums",))
    inputs = draw(case)
    inputs.below_mean[:] = 100
    check_sums(inputs, *run_dgrad(library, case, inputs))


SMALL = Case(1, 4, 4, 64, 64, ("skip_out", "mask"))
OTHER = torch.zeros(1 << 14, dtype=torch.bfloat16)
REFUSED = {
    "skip_stride 3": ({}, {"skip_stride": 3}, "skip_stride 3 is neither 1 nor 2"),
    "stride 4": ({}, {"stride": 4}, "stride 4 is neither 1 nor 2"),
    "12 channels": ({}, {"c": 12}, "dx has 12 channels, and the kernel takes multiples of 8"),
    "12 filters": ({}, {"k": 12}, "g has 12 channels, and the kernel takes multiples of 8"),
    "no weight": ({"weight": None}, {}, "weight is missing"),
    "alignment": ({"g": OTHER[1:]}, {}, "g begins at an address that is no multiple of 16"),
    "no b": ({"b": None}, {}, "one of b and c is missing"),
    "no z": ({"z": None}, {}, "z is missing, and there is a b"),
    "no below_shift": ({"below_shift": None}, {}, "one of below_scale and below_shift is missing"),
    "no below_z": ({"below_z": None}, {}, "below_z is missing, and there is a below_scale"),
    "no below_mean": ({"below_mean": None}, {}, "below_z, below_mean and partials must be given together"),
    "two masks": ({"below_out": OTHER}, {}, "below_out masks in the place of below_scale"),
    "no skip": ({"skip": None}, {}, "skip is missing, and there is a skip_out"),
    "huge": ({}, {"n": 1 << 15, "h": 64, "w": 64}, "dx has 2.31 elements or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    changes, numbers, said = REFUSED[name]
    inputs = dataclasses.replace(draw(SMALL), **changes)
    call = {"skip_stride": 1, "n": 1, "h": 4, "w": 4, "c": 64, "k": 64, "stride": 1} | numbers
    extents = [call[extent] for extent in ("n", "h", "w", "c", "k", "stride")]
    with pytest.raises(EmulationError, match=rf"ValueError: conv1x1_dgrad of \({call['n']}, .*: .*{said}"):
        library.conv1x1_dgrad(inputs.g, inputs.z, inputs.a, inputs.b, inputs.c, inputs.weight, inputs.below_z,
            inputs.below_scale, inputs.below_shift, inputs.below_mean, inputs.below_out, inputs.skip, inputs.skip_out,
            call["skip_stride"], OTHER, torch.zeros(2, 64), 0, *extents, 2, 0, 1,
        )  # fmt: skip
