"""What a test run makes once: shared between workers, and the libraries of planted faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import hang, planted_faults, shared

WORKER = """
import json, sys
from pathlib import Path
from tests.support.shared import once

class Factory:
    getbasetemp = staticmethod(lambda: Path(sys.argv[1]) / sys.argv[2])

def make():
    with open(f"{sys.argv[1]}/made", "a") as made:
        made.write("once\\n")
    return [1, {"a": None}]

print(json.dumps(once(Factory, "thing", make)))
"""


def test_workers_of_a_run_make_a_thing_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    commands = [[sys.executable, "-c", WORKER, str(tmp_path), worker] for worker in ("gw0", "gw1", "gw2")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = {process.communicate(timeout=hang.SECONDS)[0].strip() for process in running}
    assert said == {'[1, {"a": null}]'} and (tmp_path / "made").read_text() == "once\n"


def test_what_could_not_be_made_is_tried_again(tmp_path_factory):
    with pytest.raises(ZeroDivisionError):
        shared.once(tmp_path_factory, "quotient", lambda: 1 / 0)
    assert shared.once(tmp_path_factory, "quotient", lambda: 1) == 1


def faults(*pairs: tuple[str, str]) -> list[planted_faults.Fault]:
    return [planted_faults.Fault(f"fault {number}", "source.cuh", *pair) for number, pair in enumerate(pairs, 1)]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(planted_faults.emulated, "CSRC", tmp_path)
    (tmp_path / "source.cuh").write_text("int f(int a) { if (a > 2) return a + 1; return a * a; }\n")
    return tmp_path


def test_a_fault_within_another_is_in_the_same_library(source):
    inner, outer, same = faults(("a > 2", "a >= 2"), ("if (a > 2) return a + 1;", "return a;"), ("a > 2", "a < 2"))
    apart = faults(("a * a", "2 * a"))[0]
    assert planted_faults.groups([inner, outer, same, apart]) == [[inner, outer, same, apart]]
    planted_faults.write_sources(source / "planted", [inner, outer, same, apart])
    written = (source / "planted/source.cuh").read_text().splitlines()[1]
    first = "(planted_fault == 1 ? a >= 2 : (planted_fault == 3 ? a < 2 : a > 2))"
    second = f"if (planted_fault == 2) {{ return a; }} else {{ if ({first}) return a + 1; }}"
    assert written == f"int f(int a) {{ {second} return (planted_fault == 4 ? 2 * a : a * a); }}"


def test_faults_that_cross_are_in_two_libraries(source):
    one, other = faults(("a + 1; return", "a; return"), ("return a * a", "return 0"))
    assert planted_faults.groups([one, other]) == [[one], [other]]
