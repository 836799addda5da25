"""The parts of `make gpu`: its tests, sanitizer and micro-tests as programs, what is judged, and the command itself."""

import json
import shutil
import sys
import textwrap

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import cudnn, layers, micro, plan, tests
from benchmarks.gpu.rows import TINY, Row
from fused_resnet.errors import BackendError
from tests.support import hang

# ---- pytest and the sanitizer ----


@pytest.fixture
def cases(monkeypatch, tmp_path):
    """A file of tests outside of the checkout, run by one process."""
    monkeypatch.setattr(tests, "MOST_WORKERS", 1)
    path = tmp_path / "test_cases.py"

    def write(text):
        path.write_text("import pytest\n" + textwrap.dedent(text))
        return str(path)

    return write


def test_tests_are_counted_with_the_reasons_of_failures_and_skips(cases):
    found = tests.tested(
        (
            cases(
                """
                def test_good(): pass
                def test_bad(): assert 1 == 2, "no good"
                @pytest.mark.parametrize("i", range(2))
                def test_elsewhere(i): pytest.skip("needs another GPU")
                """
            ),
        ),
        60,
    )
    assert found["status"] == "failed: 1 tests"
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 2)
    assert found["skips"] == {"needs another GPU": 2}
    assert "test_bad: AssertionError: no good" in found["failures"][0]


def test_a_run_in_which_no_test_ran_shows_nothing(cases):
    found = tests.tested((cases("def test_elsewhere(): pytest.skip('no GPU')"),), hang.SECONDS)
    assert found["status"] == "error: no test ran: {'no GPU': 1}"
    with pytest.raises(RuntimeError, match="pytest ended with 2"):
        tests.tested((cases("import no_such_module_anywhere"),), hang.SECONDS)


def test_a_program_that_does_not_end_is_ended_and_the_row_says_so():
    row = Row("tests", "slow", lambda limit: tests.run([sys.executable, "-c", "import time; time.sleep(60)"], limit), 1)
    assert gpu.measured(row, 0.2) == {"status": "stopped after 0 s"}


SANITIZER = """#!/bin/sh
while [ "$1" != {python} ]; do shift; done
"$@"
echo "========= {summary}"
"""
GOOD = "def test_small_shapes_triton(): pass"


@pytest.mark.parametrize(
    ("summary", "test", "status"),
    [
        ("ERROR SUMMARY: 0 errors", GOOD, "ok"),
        ("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", GOOD, "ok"),
        ("ERROR SUMMARY: 1 error", GOOD, "failed: 1 errors, 0 tests"),
        ("RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warnings)", GOOD, "failed: 3 errors, 0 tests"),
        ("no summary", GOOD, "error: the sanitizer gave no summary"),
        ("ERROR SUMMARY: 0 errors", GOOD.replace("pass", "assert 0"), "failed: 0 errors, 1 tests"),
        ("ERROR SUMMARY: 0 errors", GOOD.replace("pass", "pytest.skip('no')"), "error: no test ran: {'no': 1}"),
    ],
)
def test_the_sanitizer_must_give_a_summary_over_tests_that_ran(monkeypatch, tmp_path, cases, summary, test, status):
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format(python=sys.executable, summary=summary))
    program.chmod(0o755)
    monkeypatch.setattr(tests, "find_sanitizer", lambda: str(program))
    monkeypatch.setattr(tests, "SANITIZED", cases(test))
    found = tests.sanitized("memcheck", "triton", hang.SECONDS)
    assert found["status"] == status
    assert found["report"] == [f"========= {summary}"]


def test_without_a_sanitizer_nothing_was_checked(monkeypatch):
    monkeypatch.setattr(tests, "find_sanitizer", lambda: None)
    with pytest.raises(RuntimeError, match="no compute-sanitizer"):
        tests.sanitized("memcheck", "triton", hang.SECONDS)


# ---- micro-tests ----

needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")),
    reason="needs nvcc, which is not here",
)


@needs_nvcc
def test_every_micro_test_compiles_and_gives_one_line_of_json(tmp_path):
    assert len(micro.sources()) == 7
    programs = micro.all_compiled()
    for name, program in programs.items():
        assert not isinstance(program, Exception), program
        answer = micro.answered(program)
        assert answer["name"] == name and answer["detail"]
        if not torch.cuda.is_available():
            assert answer["answer"] == "error" and "cudaGetDeviceProperties" in answer["detail"]
            with pytest.raises(micro.MicroError, match=f"{name}: cudaGetDeviceProperties"):
                micro.measured(name)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Segmentation fault", "said 'Segmentation fault', no line of JSON"),
        ('{"name": "asks", "answer": "maybe", "detail": ""}', "expected its name, one of"),
        ('{"name": "other", "answer": "yes", "detail": ""}', "expected its name, one of"),
        ('{"name": "asks", "answer": "yes"}', "expected its name, one of"),
    ],
)
def test_an_answer_that_is_none_is_an_error(tmp_path, said, message):
    program = tmp_path / "asks"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    with pytest.raises(micro.MicroError, match=message):
        micro.answered(program)


def test_a_micro_test_that_does_not_compile_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(micro, "find_nvcc", lambda: "false")
    with pytest.raises(micro.MicroError, match="launch_gap does not compile"):
        micro.compiled("launch_gap", tmp_path)


# ---- what is judged ----


def judged(**changes):
    return plan.problems({"part": "p", "name": "n", "status": "ok"} | changes)


OURS = {"label": "ours", "kind": "ours", "status": "ok"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"status": "not installed: pip install x"}, []),
        ({"status": "failed: 2 tests"}, ["p/n: failed: 2 tests"]),
        ({"status": "stopped after 60 s"}, ["p/n: stopped after 60 s"]),
        ({"status": "ok; it left the CUDA context unusable"}, ["p/n: ok; it left the CUDA context unusable"]),
        ({"rows": [OURS | {"kind": "peer", "status": "error: it"}]}, []),
        ({"rows": [OURS | {"status": "error: it"}]}, ["p/n: ours: error: it"]),
        ({"rows": [OURS | {"error": {"relative_rms": 0.01}, "limit": 0.1}]}, []),
        (
            {"rows": [OURS | {"error": {"relative_rms": None}, "limit": 0.1}]},
            ["p/n: ours: relative RMS error of the logits is None"],
        ),
        ({"rows": [OURS | {"loss_is_finite": False}]}, ["p/n: ours: the loss is not finite"]),
        ({"rows": [OURS | {"dtype": "float32", "gradient_rms": 2e-3, "eager_gradient_rms": 1e-3}]}, []),
        (
            {"rows": [OURS | {"dtype": "float32", "gradient_rms": 3e-3, "eager_gradient_rms": 1e-3}]},
            ["p/n: ours, float32: gradients err by 0.003, eager's by 0.001"],
        ),
        (
            {"rows": [OURS | {"dtype": "float16", "gradient_rms": None, "eager_gradient_rms": 1e-3}]},
            ["p/n: ours, float16: gradients err by None, eager's by 0.001"],
        ),
        ({"rows": [OURS | {"dtype": "float16", "gradient_rms": None, "eager_gradient_rms": None}]}, []),
        ({"equal": False, "first_difference": "loss"}, ["p/n: steps differ: loss"]),
        (
            {"errors": {"triton": 0.5, "auto": 0.01}, "limit": 0.03},
            ["p/n: triton differs from eager by 0.5, limit 0.03"],
        ),
        ({"passes": {"dgrad": {"triton": {"error": "E: x"}}}}, ["p/n: dgrad, triton: E: x"]),
        (
            {"reports": [{"dtype": "float16", "backend": "auto", "frozen": True, "passed": False}]},
            ["p/n: float16, auto, frozen: a stage is further from float64 than allowed"],
        ),
    ],
)
def test_what_is_wrong_in_a_row(changes, expected):
    assert judged(**changes) == expected


def test_a_layer_that_a_backend_refuses_is_noted_and_another_failure_is_none_of_that():
    def refuses():
        raise BackendError("takes 3x3 only")

    refused = {}
    assert layers._refuses(refuses, "dgrad, cuda", refused) and refused == {"dgrad, cuda": "takes 3x3 only"}
    assert not layers._refuses(lambda: 1 / 0, "dgrad, triton", refused) and len(refused) == 1


def test_cudnns_graphs_are_optional(monkeypatch):
    monkeypatch.setattr(cudnn.importlib.util, "find_spec", lambda name: None)
    row = cudnn.rows(TINY)[0]
    assert gpu.measured(row, 1)["status"] == "not installed: pip install nvidia-cudnn-frontend"
    assert cudnn.nhwc_strides([2, 3, 4, 5]) == list(
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last).stride()
    )


# ---- the command ----


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("benchmarks.gpu: it measures a CUDA GPU, and torch ") and said.err.count("\n") == 1
    assert not said.out and not list(tmp_path.iterdir())


def test_arguments_that_cannot_be_used(capsys, tmp_path):
    assert gpu.main(["--device", "cpu", "--seconds", "0", "--out", str(tmp_path / "x")]) == 2
    assert gpu.main(["--device", "cpu"]) == 2
    with pytest.raises(SystemExit):
        gpu.main(["--only", "everything"])
    said = capsys.readouterr().err
    assert "--seconds 0.0: expected more than 0" in said and "needs an --out" in said


def test_list_shows_the_rows_and_measures_nothing(capsys):
    assert gpu.main(["--only", "micro", "baselines", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("s  micro/launch_gap") for line in lines) and "expected in all, of 540" in lines[-1]


FEW = ("baselines/ceilings", "inference/resnet18/b1", "training/resnet18/b2", "training/resnet18/repeat")


def test_a_trial_on_a_cpu_measures_every_kind_of_row_and_repeats_none(monkeypatch, tmp_path, capsys):
    whole = plan.plan_for(["inference"])
    layer = next(one.id for one in whole(TINY) if one.part == "layers" and "r1x1" in one.name)
    few = [one for one in whole(TINY) if one.id.startswith((*FEW, layer))]
    monkeypatch.setattr(gpu, "plan_for", lambda parts: lambda settings: few)
    path = tmp_path / "trial.json"
    command = ["--device", "cpu", "--out", str(path), "--commit", "abc"]
    assert gpu.main(command) == 0, capsys.readouterr().err
    document = json.loads(path.read_text())
    assert {entry["part"] for entry in document["rows"]} == {"baselines", "inference", "training", "layers"}
    for entry in document["rows"]:
        assert entry["status"] == "ok" and entry["run"] == 0, entry
        for candidate in entry.get("rows", []):
            assert candidate["status"] == "ok" and len(candidate["samples_ms"]) == 1, candidate
    assert document["runs"][0]["environment"]["gpu"] is None and "build" not in document["runs"][0]
    repeat = next(entry for entry in document["rows"] if "repeat" in entry["name"])
    assert repeat["equal"] is True and repeat["steps"] == TINY.repeats
    capsys.readouterr()
    assert gpu.main(command) == 0
    assert f"0 rows measured, {len(few)} known before" in capsys.readouterr().out


def test_a_build_that_fails_is_told_and_the_rest_still_measured(monkeypatch, tmp_path):
    options = gpu.parser().parse_args(["--device", "cpu", "--out", str(tmp_path / "x.json")])
    build = lambda: {"status": "error: it ended with 1", "output": ["no nvcc"]}  # noqa: E731
    rows = [Row("layers", "a", lambda _: {}, 1.0)]
    store, outcome = gpu.run(options, TINY, lambda settings: rows, build)
    assert outcome.measured == ["layers/a"]
    assert gpu.wrong_in(store) == ["build: error: it ended with 1"]
