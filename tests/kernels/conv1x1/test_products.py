"""Both products of a masked gradient, emulated on the CPU from the sources that nvcc compiles, against float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.kernels.conv1x1.products_calls import Case, check, draw, reference, run
from tests.support import emulated
from tests.support.emulated import EmulationError

pytestmark = emulated.needs_compiler


@pytest.fixture(scope="module")
def library():
    return emulated.library("kernels/conv1x1/products/host.cpp")


CASES = [
    Case(1, 28, 28, 64, 256, seed=2),
    Case(1, 14, 14, 128, 256, seed=3),
    Case(1, 16, 8, 64, 256, prologue=False, masked=False, rows=1, seed=4),
    Case(3, 11, 9, 72, 136, dtype=torch.float16, rows=1, seed=5),
    Case(2, 13, 11, 264, 72, rows=2, workers=2, seed=6),
    Case(2, 14, 14, 64, 256, stride=2, prologue=False, rows=1, seed=7),
    Case(3, 13, 11, 136, 200, stride=2, dtype=torch.float16, masked=False, rows=1, seed=8),
    Case(1, 1, 1, 8, 8, rows=1, seed=9),
]
# clusters of 2, 4 and 8 blocks; more tiles than clusters, and blocks without a single filter
CLUSTERS = [
    Case(1, 28, 14, 128, 512, rows=2, seed=10),
    Case(1, 14, 14, 256, 1024, rows=1, seed=11),
    Case(1, 7, 7, 512, 2048, rows=1, seed=12),
    Case(1, 14, 14, 256, 512, stride=2, prologue=False, rows=1, seed=13),
    Case(3, 13, 11, 72, 392, dtype=torch.float16, rows=2, workers=2, seed=14),
    Case(3, 13, 11, 136, 520, stride=2, prologue=False, masked=False, rows=1, seed=15),
    Case(2, 9, 9, 40, 1288, dtype=torch.float16, rows=1, seed=0),
]


@pytest.mark.parametrize("case", CASES + CLUSTERS, ids=str)
def test_products(library, case):
    check(library, case)


@pytest.mark.parametrize("filters", [136, 392, 1000])
def test_products_repeat_bitwise(library, filters):
    case = Case(2, 13, 11, 72, filters, rows=3)
    inputs = draw(case)
    first = run(library, case, inputs)
    for seed, workers in ((17, 2), (0, 1)):
        again = run(library, dataclasses.replace(case, seed=seed, workers=workers), inputs)
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize(
    ("channels", "filters", "reads"),
    [(64, 256, 1), (128, 256, 1), (264, 256, 3), (128, 512, 1), (256, 1024, 2), (64, 2048, 1)],
)
def test_grad_is_read_once_per_block_of_channels(library, channels, filters, reads):
    case = Case(1, 13, 11, channels, filters, rows=1)
    run(library, case, draw(case))
    assert library.loaded_bytes() == reads * 2 * 13 * 11 * filters


@pytest.mark.parametrize("filters", [64, 512])
def test_mask_selects(library, filters):
    """Where out <= 0 a NaN of grad is dropped; where out is NaN grad passes, of either sign of the NaN."""
    case = Case(1, 9, 9, 64, filters, rows=1)
    inputs = draw(case)
    inputs.out[0, 0, 0, :4] = torch.tensor([0.0, -0.0, torch.nan, -1.0])
    inputs.out.view(torch.int16)[0, 0, 0, 4] = -1  # a NaN whose sign bit is set
    inputs.grad[0, 0, 0, :5] = torch.tensor([torch.nan, torch.inf, 3.0, torch.nan, 5.0])
    expected_m, expected_sum, expected_t = reference(case, inputs)
    assert all(value.isfinite().all() for value in (expected_m, expected_sum, expected_t))
    m, sum_g, t = run(library, case, inputs)
    torch.testing.assert_close(m.double(), expected_m, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sum_g.double(), expected_sum, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(t.double(), expected_t, rtol=2**-8, atol=2e-5)


def test_rows_that_the_gpu_fills(library):
    def rows(*sizes: int, processors: int = 132) -> int:
        return library.conv1x1_products_rows(*sizes, processors)

    assert rows(32, 56, 56, 64, 256, 1) == 132
    assert rows(32, 56, 56, 256, 256, 1) == 66
    assert rows(1, 14, 14, 64, 256, 1) == 2
    assert rows(32, 28, 28, 128, 512, 1) == 66
    assert rows(32, 14, 14, 256, 1024, 1) == 16
    assert rows(32, 7, 7, 512, 2048, 1) == 4


REFUSED = {
    "2056 filters": (Case(1, 4, 4, 64, 2056, rows=1), {}, "2056 filters are more than the 2048"),
    "12 channels": (Case(1, 4, 4, 12, 64, rows=1), {}, "z has 12 channels, and the kernel takes multiples of 8"),
    "rows": (Case(1, 4, 4, 64, 64, rows=2), {}, "partials has 2 rows for 1 tiles"),
    "center": (Case(1, 4, 4, 64, 64, rows=1), {"center": None}, "center is missing"),
    "norm": (Case(1, 4, 4, 64, 64, rows=1), {"in_scale": None}, "one of in_scale and in_shift is missing"),
    "stride": (Case(1, 4, 4, 64, 64, rows=1, stride=4), {}, "stride 4 is neither 1 nor 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(library, name):
    case, changes, reason = REFUSED[name]
    with pytest.raises(EmulationError, match=r"ValueError: conv1x1_products of \(1, 4, 4, .*" + reason):
        run(library, case, dataclasses.replace(draw(case), **changes))
