"""Emulated kernels under AddressSanitizer and UndefinedBehaviorSanitizer; all of them by `make test-sanitized`."""

from __future__ import annotations

import sys

import pytest

from tests.support import emulated, planted_faults, sanitized
from tests.support.planted_faults import Fault

pytestmark = emulated.needs_compiler


@pytest.fixture(scope="module", autouse=True)
def started():
    reason = sanitized.missing()
    if reason:
        pytest.skip(reason)


def pytest_under(*arguments: str) -> str:
    plugins = ["-p", "no:cacheprovider", "-p", "tests.support.sanitized"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments]
    done = sanitized.run(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_emulator_is_clean():
    """The first case of each test: fibers that throw and that are left, and clusters."""
    said = pytest_under("tests/kernels/test_emulation.py")
    assert " passed" in said and "skipped" not in said


BESIDE = Fault(
    "reads a chunk behind the last",
    "kernels/passes/global_avg_pool.cuh",
    "load_ordered(p.x + offset_of(p.tiles, pixel, place))",
    "load_ordered(p.x + offset_of(p.tiles, pixel, place) + kChunkChannels)",
)
SHIFT = Fault(
    "shifts by as many bits as there are",
    "kernels/passes/global_avg_pool.cuh",
    "place.row > 0 || !place.inside",
    "place.row > (1 << (p.tiles.channels + 24)) || !place.inside",
)
POOL = """
import sys, torch
from tests.support import emulated
library = emulated.library("kernels/passes/host.cpp", sys.argv[1])
library.plant_fault(int(sys.argv[2]))
x, y = torch.ones(1, 4, 4, 8, dtype=torch.bfloat16), torch.ones(1, 8, dtype=torch.bfloat16)
print(library.global_avg_pool(x, y, 0, 1, 4, 4, 8, 1, 1), flush=True)
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> str:
    """A folder with a pool that has both faults, switched off."""
    folder = tmp_path_factory.mktemp("faulty")
    planted_faults.write_sources(folder, [BESIDE, SHIFT])
    return str(folder)


@pytest.mark.parametrize(
    ("number", "said"), [(1, "AddressSanitizer: heap-buffer-overflow"), (2, "runtime error: shift exponent 32")]
)
def test_a_planted_fault_is_caught(faulty, number, said):
    done = sanitized.run([sys.executable, "-c", POOL, faulty, str(number)])
    assert done.returncode != 0 and said in done.stderr, done.stdout + done.stderr[-2000:]


def test_the_pool_without_a_fault_is_clean(faulty):
    done = sanitized.run([sys.executable, "-c", POOL, faulty, "0"])
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr[-2000:]


def test_every_file_that_runs_on_the_emulator_is_meant():
    assert {
        "tests/kernels/test_emulation.py",
        "tests/kernels/passes/test_passes.py",
        "tests/kernels/conv1x1/test_forward.py",
    } <= set(sanitized.files())
    assert not [name for name in sanitized.files() if "faults" in name]
