"""The Hopper kernel of a whole bottleneck, emulated on the CPU from the sources that nvcc compiles, against float64."""

from __future__ import annotations

import dataclasses
import runpy

import pytest
import torch

from tests.kernels.bottleneck.calls import Case, assert_rounded, check, draw, expected, moved_bytes, run
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler

BF16, F16 = torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/bottleneck/host.cpp")


# A tile is 16 x 8 pixels of 64 channels (8 x 8 at stride 2), 7 x 14 of 128 (7 x 8 at stride 2).
CASES = [
    Case(1, 16, 8, 64, seed=0),
    Case(2, 17, 9, 64, seed=2),
    Case(3, 7, 5, 64, dtype=F16, blocks=1, seed=3),
    Case(5, 1, 1, 64, blocks=1, seed=4),
    Case(1, 40, 23, 64, blocks=3, workers=2, seed=5),
    Case(2, 17, 9, 64, 64, seed=6),
    Case(1, 33, 30, 64, 64, blocks=1, seed=7),
    Case(3, 5, 3, 64, 64, dtype=F16, seed=8),
    Case(1, 19, 10, 64, 128, blocks=1, seed=9),
    Case(2, 7, 17, 64, 256, dtype=F16, seed=10),
    Case(1, 17, 17, 64, 64, 2, blocks=1, seed=11),
    Case(2, 8, 18, 64, 256, 2, dtype=F16, seed=12),
    Case(1, 7, 14, 128, seed=0),
    Case(1, 15, 15, 128, blocks=1, seed=13),
    Case(3, 7, 3, 128, dtype=F16, blocks=1, seed=14),
    Case(2, 8, 29, 128, blocks=3, workers=2, seed=15),
    Case(1, 9, 15, 128, 256, blocks=1, seed=16),
    Case(2, 7, 7, 128, 64, dtype=F16, seed=17),
    Case(1, 15, 17, 128, 256, 2, blocks=1, seed=18),
    Case(2, 28, 13, 128, 192, 2, seed=19),
    Case(3, 1, 2, 128, 64, 2, dtype=F16, seed=20),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_float64(library, case):
    check(library, case)


# The bottlenecks of ResNet-50's first two stages.
RESNET = [
    Case(1, 56, 56, 64, 64, blocks=4, workers=2, seed=2),
    Case(1, 56, 56, 64, blocks=4, workers=2, seed=3),
    Case(1, 56, 56, 128, 256, 2, blocks=4, workers=2, seed=4),
    Case(1, 28, 28, 128, blocks=4, workers=2, seed=5),
]


@pytest.mark.parametrize("case", RESNET, ids=str)
def test_reads_its_input_one_and_a_half_times_at_most_and_writes_its_output_once(library, case):
    inputs = draw(case)
    y = run(library, case, inputs)
    loaded, stored = moved_bytes(library)
    assert_rounded(y, *expected(case, inputs))
    assert 2 * inputs.x.numel() <= loaded <= 1.5 * 2 * inputs.x.numel()
    assert stored == 2 * y.numel()


@pytest.mark.parametrize("case", [Case(1, 65, 33, 64), Case(1, 49, 57, 64, 64, 2), Case(1, 29, 43, 128)], ids=str)
def test_tiles_that_hang_over_the_edge_read_no_more(library, case):
    inputs = draw(case)
    y = run(library, case, inputs)
    loaded, stored = moved_bytes(library)
    assert loaded <= 1.5 * 2 * inputs.x.numel() and stored == 2 * y.numel()


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[11], CASES[13], CASES[18]], ids=str)
def test_nan_and_infinity_reach_their_pixels_alone(library, case):
    inputs = draw(case)
    inputs.x[0, 0, 0, 5] = torch.nan
    inputs.x[-1, -1, -1, 40] = torch.inf
    exact, slack = expected(case, inputs)
    assert 0 < exact.isnan().sum() < exact.numel()
    assert_rounded(run(library, case, inputs), exact, slack)


@pytest.mark.parametrize("case", [CASES[1], CASES[10], CASES[13]], ids=str)
def test_repeats_bitwise_whatever_runs_first(library, case):
    inputs = draw(case)
    first = run(library, case, inputs)
    for seed, blocks, workers in ((21, 1, 1), (22, 5, 2)):
        again = dataclasses.replace(case, seed=seed, blocks=blocks, workers=workers)
        assert torch.equal(run(library, again, inputs), first)


def test_images_do_not_mix(library):
    """The blank row between two images is the padding of both."""
    case = Case(4, 5, 9, 64, seed=6)
    inputs = draw(case)
    y = run(library, case, inputs)
    single = dataclasses.replace(case, n=1)
    for image in range(case.n):
        alone = run(library, single, dataclasses.replace(inputs, x=inputs.x[image : image + 1]))
        assert torch.equal(alone, y[image : image + 1])


MISALIGNED = torch.zeros(9 * 256 + 1, dtype=BF16)[1:]
REFUSED = {
    "channels": (Case(1, 3, 3, 256), {}, "256 channels of the 3x3 convolution are neither 64 nor 128"),
    "stride 3": (Case(1, 3, 3, 64, 64, 3), {}, "stride 3 is neither 1 nor 2"),
    "strided identity": (Case(1, 3, 3, 64, stride=2), {}, "stride 2 needs a downsample"),
    "no downsample": (
        Case(1, 3, 3, 64, 128),
        {"downsample": None, "downsample_scale": None, "downsample_shift": None},
        "128 channels of x are not the 256 of the output, and there is no downsample",
    ),
    "norm of no downsample": (
        Case(1, 3, 3, 64),
        {"downsample_shift": torch.zeros(256)},
        "downsample is missing, but not its scale and shift",
    ),
    "no norm": (Case(1, 3, 3, 64, 64), {"downsample_scale": None}, "the scale of downsample is missing"),
    "72 channels": (Case(1, 3, 3, 64, 72), {}, "72 channels of x are none of 64, 128, 192 and 256"),
    "512 channels": (Case(1, 3, 3, 128, 512), {}, "512 channels of x are none of 64, 128, 192 and 256"),
    "no shift": (Case(1, 3, 3, 64), {"shift2": None}, "the shift of weight2 is missing"),
    "misaligned": (Case(1, 3, 3, 64), {"x": MISALIGNED}, "x begins at an address that is no multiple of 16 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    case, changes, reason = REFUSED[name]
    inputs = dataclasses.replace(draw(case), **changes)
    shape = rf"ValueError: bottleneck_inference of \({case.n}, {case.h}, {case.w}, {case.channels_in}, {case.c}\): "
    with pytest.raises(EmulationError, match=shape + reason):
        run(library, case, inputs)


def test_refuses_maps_of_2_to_the_31_elements(library):
    x = torch.zeros(8)
    with pytest.raises(EmulationError, match="x has 2.31 elements or more"):
        library.bottleneck_inference(*[x] * 14, 0, 256, 512, 256, 64, 64, 1, 0, 1, 0, 1)
    with pytest.raises(EmulationError, match="y has 2.31 elements or more"):
        library.bottleneck_inference(*[x] * 14, 0, 128, 512, 128, 64, 64, 1, 0, 1, 0, 1)


def test_generated_instructions_are_what_the_generator_writes():
    folder = emulated.CSRC / "device" / "ptx"
    generated = runpy.run_path(str(folder / "generate_bottleneck_wgmma.py"))["header"]()
    assert (folder / "bottleneck_wgmma.cuh").read_text() == generated
