"""The runner of `make gpu` without a GPU: what it keeps, repeats, leaves out and survives; nothing here is a result."""

import functools
import json
import os
import pickle
import time

import pytest

from benchmarks.gpu import plan
from benchmarks.gpu import results as gpu_results
from benchmarks.gpu.results import Results, ResultsError, digest_of_files, fingerprints
from benchmarks.gpu.rows import PARTS, TINY, Row, Settings, execute, ordered
from benchmarks.gpu.worker import Worker, measured
from tests.support import hang

PRINTS = {"machine": "m", "sources": "s", "tests": "t", "micro": "u"}


def environment(name="A GPU", driver="1.0", torch_version="2.11"):
    return {
        "gpu": {"name": name, "driver_version,clocks.sm": f"{driver}, 1980 MHz", "cuda": "13.0", "cudnn": 9},
        "device": "cuda",
        "versions": {"torch": torch_version, "torchvision": "0", "triton": "3"},
        "commit": {"sha": "0" * 40, "dirty": False},
        "date": "2026-01-01T00:00:00+00:00",
    }


def results(path, prints=PRINTS, resume=(), **machine):
    return Results(path, environment(**machine), ["make", "gpu"], resume, prints)


def row(name, part="layers", seconds=1.0, **options):
    return Row(part, name, lambda _: {"figure": name}, seconds, **options)


class Clock:
    """A clock that advances by what each row is said to take."""

    def __init__(self, takes=None):
        self.now, self.takes = 0.0, takes or {}

    def __call__(self):
        return self.now

    def measure(self, one, limit):
        self.now += self.takes.get(one.name, one.expected_s)
        return measured(one, limit)


def run(rows, store, seconds=100.0, clock=None, **options):
    clock = clock or Clock()
    measure = options.pop("measure", clock.measure)
    return execute(rows, store, measure, seconds, clock=clock, tell=lambda text: None, **options)


def names(path):
    return [f"{entry['part']}/{entry['name']}" for entry in json.loads(path.read_text())["rows"]]


# ---- the file ----


def test_every_row_is_on_the_disk_before_the_next_begins(tmp_path):
    path, seen = tmp_path / "out" / "gpu.json", []
    rows = [Row("layers", name, lambda _: seen.append(names(path)) or {}, 1.0) for name in ("a", "b", "c")]
    run(rows, results(path))
    assert seen == [[], ["layers/a"], ["layers/a", "layers/b"]]
    assert not list(path.parent.glob("*.partial"))


def test_a_cut_loses_nothing_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "gpu.json"

    def cut(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([row("a"), Row("layers", "b", cut, 1.0), row("c")], results(path))
    assert names(path) == ["layers/a"]
    outcome = run([row("a"), row("b"), row("c")], results(path))
    assert (outcome.known, outcome.measured) == (["layers/a"], ["layers/b", "layers/c"])
    document = json.loads(path.read_text())
    assert [entry["run"] for entry in document["rows"]] == [0, 1, 1] and len(document["runs"]) == 2


def test_rows_are_taken_over_from_another_file_once(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    run([row("a")], results(first))
    outcome = run([row("a"), row("b")], results(second, resume=[first, tmp_path / "absent.json"]))
    assert outcome.known == ["layers/a"] and names(second) == ["layers/a", "layers/b"]
    results(second, resume=[first])
    assert names(second) == ["layers/a", "layers/b"]


@pytest.mark.parametrize(("changed", "again"), [("machine", ["layers/a", "layers/b"]), ("sources", ["layers/b"])])
def test_what_a_row_stands_for_decides_whether_it_is_known(tmp_path, changed, again):
    rows = [row("a"), row("b", stands_for=("machine", "sources"))]
    run(rows, results(tmp_path / "gpu.json"))
    assert run(rows, results(tmp_path / "gpu.json", PRINTS | {changed: "other"})).measured == again


def test_fingerprints_follow_the_machine_and_the_sources(tmp_path):
    same = fingerprints(environment())
    assert same == fingerprints(environment() | {"date": "another day"})
    for other in (environment(driver="2.0"), environment(torch_version="2.12"), environment(name="B")):
        assert fingerprints(other)["machine"] != same["machine"]
    (tmp_path / "src" / "__pycache__").mkdir(parents=True)
    (tmp_path / "src" / "a.py").write_text("1")
    before = digest_of_files("src", root=tmp_path)
    (tmp_path / "src" / "__pycache__" / "a.pyc").write_text("2")
    assert digest_of_files("src", root=tmp_path) == before
    (tmp_path / "src" / "b.cu").write_text("")
    assert digest_of_files("src", root=tmp_path) != before


def test_files_that_cannot_be_continued_are_named(tmp_path):
    path = tmp_path / "gpu.json"
    results(path)
    with pytest.raises(ResultsError, match=r"gpu\.json holds results of A GPU, this is B GPU"):
        results(path, name="B GPU")
    for content in ("{", '{"schema": 1, "benchmark": "layers"}'):
        path.write_text(content)
        with pytest.raises(ResultsError, match=r"gpu\.json"):
            results(path)
        assert path.read_text() == content


def test_nan_is_null_in_the_file_and_never_good(tmp_path):
    run([Row("layers", "a", lambda _: {"figure": float("nan")}, 1.0)], results(tmp_path / "gpu.json"))
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"][0]["figure"] is None
    assert not gpu_results.at_most(None, 1.0) and not gpu_results.at_most(float("nan"), 1.0)


# ---- order and budget ----


def test_rows_that_can_wait_come_behind_those_of_every_part():
    rows = [
        row("1", "tune", later=2),
        row("2", "inference", later=2),
        row("3", "inference"),
        row("4", "tests", later=1),
    ]
    assert [one.name for one in ordered(rows, PARTS)] == ["3", "4", "2", "1"]
    assert [one.name for one in ordered(rows, ["inference"])] == ["3", "2"]


def test_what_does_not_fit_is_left_out_and_said_and_what_does_still_runs(tmp_path):
    said, clock = [], Clock()
    store = results(tmp_path / "gpu.json")
    rows = [row("a", seconds=6), row("b", seconds=5), row("c", seconds=4)]
    outcome = execute(rows, store, clock.measure, 10.0, clock=clock, tell=said.append)
    assert (outcome.measured, outcome.left_out) == (["layers/a", "layers/c"], ["layers/b"])
    assert "layers/b: left out, expected to take 5 s with 4 s left" in said
    run_of = json.loads((tmp_path / "gpu.json").read_text())["runs"][0]
    assert run_of["left_out"] == {"layers/b": "expected to take 5 s, 4 s were left"}


def test_a_row_gets_four_times_what_it_is_expected_to_take_but_no_more_than_is_left(tmp_path):
    limits = []

    def measure(one, limit):
        limits.append(limit)
        clock.now += 50
        return {"status": "ok"}

    clock, rows = Clock(), [row("a", seconds=40), row("b", seconds=1), row("c", seconds=30)]
    run(rows, results(tmp_path / "x"), 160, clock, measure=measure)
    assert limits == [160, 60, 60]


def test_only_a_row_that_its_own_limit_stopped_is_kept(tmp_path):
    store, clock = results(tmp_path / "gpu.json"), Clock()

    def stopped(one, limit):
        clock.now += limit
        return {"status": f"stopped after {limit} s"}

    outcome = run([row("own", seconds=1), row("cut", seconds=1)], store, 70.0, clock, measure=stopped)
    assert (outcome.measured, outcome.left_out) == (["layers/own"], ["layers/cut"])
    assert run([row("own"), row("cut")], results(tmp_path / "gpu.json")).measured == ["layers/cut"]


def test_again_measures_what_is_known(tmp_path):
    rows = [row("a"), row("b")]
    run(rows, results(tmp_path / "gpu.json"))
    assert run(rows, results(tmp_path / "gpu.json"), again=["layers/b"]).measured == ["layers/b"]


# ---- the plan ----


@functools.cache
def planned(alone):
    """Every row, from a plan that was sent to another process."""
    return pickle.loads(pickle.dumps(plan.Plan(alone)))(Settings())


def test_the_plan_has_every_part_and_each_row_once():
    for alone in (False, True):
        rows = planned(alone)
        ids = [one.id for one in rows]
        assert len(set(ids)) == len(ids) and {one.part for one in rows} == set(PARTS)
        assert all(one.expected_s > 0 and set(one.stands_for) <= set(PRINTS) for one in rows)


def test_baselines_measure_torchvision_and_cudnn_only_where_no_comparison_does():
    assert not plan.plan_for(["baselines", "layers"]).alone and plan.plan_for(["baselines", "tests"]).alone
    beside = {one.name.partition("/")[0] for one in planned(False) if one.part == "baselines"}
    alone = {one.name for one in planned(True) if one.part == "baselines"}
    assert "cudnn" not in beside
    assert {"inference/resnet50/b256", "inference/resnet18/b1/compile", "training/resnet50/b256/compile"} <= alone
    assert sum(name.startswith("cudnn/") for name in alone) > 20


def test_tuning_begins_where_a_layer_loses_most():
    rows = [one for one in planned(False) if one.part == "tune"]
    shapes = [one.name.partition("/")[2] for one in rows]
    layers = [
        {"part": "layers", "shape": shape, "count": {"resnet50": 2}, "passes": {"inference": times}}
        for shape, times in (
            (shapes[3], {"cudnn": {"median_ms": 1.0}, "triton": {"median_ms": 1.5}}),
            (shapes[5], {"cudnn": {"median_ms": 1.0}, "triton": {"median_ms": 9.0}, "auto": {"median_ms": 3.0}}),
            (shapes[1], {"cudnn": {"median_ms": 1.0}, "triton": {"median_ms": 0.5}}),
        )
    ]
    first = [one.name.partition("/")[2] for one in plan.order_of(rows, ["tune"], layers)]
    assert first[:3] == [shapes[5], shapes[3], shapes[0]]


# ---- the worker ----


def hazards(settings):
    """Rows that a process does not survive."""
    return [
        Row("layers", "good", lambda _: {"pid": os.getpid()}, 1.0),
        Row("layers", "raises", lambda _: {}["nothing"], 1.0),
        Row("layers", "dies", lambda _: os._exit(7), 1.0),
        Row("layers", "hangs", lambda _: time.sleep(600), 1.0),
        Row("layers", "apart", lambda limit: {"pid": os.getpid(), "limit": limit}, 1.0, apart=True),
    ]


def test_a_row_that_dies_or_hangs_costs_only_itself():
    good, raises, dies, hangs, apart = hazards(TINY)
    with Worker(hazards, TINY) as worker:
        first = worker(good, hang.SECONDS)
        assert worker(raises, hang.SECONDS) == {"status": "error: KeyError: 'nothing'"}
        assert worker(good, hang.SECONDS) == first and first["pid"] != os.getpid()
        assert worker(dies, hang.SECONDS) == {"status": "error: its process ended with 7"}
        assert worker(good, hang.SECONDS)["pid"] != first["pid"]
        assert worker(hangs, 0.5) == {"status": "stopped after 0 s"}
        assert worker(apart, 5) == {"status": "ok", "pid": os.getpid(), "limit": 5}
    assert worker.process is None
