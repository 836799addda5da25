"""The report of `make gpu`, on a document made up for these tests: its device and every figure in it are invented."""

import copy
import json

import pytest

from benchmarks.gpu import inference as gpu_inference
from benchmarks.gpu import report
from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.results import ResultsError
from benchmarks.gpu.rows import Settings
from benchmarks.gpu.tables import AMP, COMPILED, Measured, ratio, summary

INVENTED = "Invented GPU of a test fixture"
ENVIRONMENT = {
    "gpu": {"name": INVENTED, "driver_version,clocks.sm": "1.2.3, 1 MHz", "cudnn": 90000},
    "device": "cuda",
    "versions": {"torch": "9.9", "torchvision": "0.99"},
    "commit": {"sha": "fedcba9876543210", "dirty": False},
    "date": "2001-02-03T04:05:06+00:00",
}


def timed(label, ms, **more):
    ours = label.startswith("fused_resnet")
    figures = {"median_ms": ms, "p10_ms": ms * 0.9, "p90_ms": ms * 1.1, "samples_ms": [ms], "images_per_s": 1e3 / ms}
    return {"label": label, "kind": "ours" if ours else "baseline", "status": "ok", **figures, **more}


def right(rms=0.01):
    return {"error": {"relative_rms": rms}, "limit": 0.1}


def entry(part, name, run=0, status="ok", **more):
    return {
        "part": part,
        "name": name,
        "key": f"{part}/{name}@{run}",
        "run": run,
        "took_s": 1.0,
        "status": status,
        **more,
    }


def document():
    """Two invented runs: inference at batch 1 with and without a compiled peer, a training step, a layer, tests."""
    inference = [
        timed(AMP["inference"], 8.0, **right()),
        timed(f"{AMP['inference']} graph", 4.0, **right()),
        timed("fused_resnet channels_last bf16", 3.0, **right()),
        timed("fused_resnet frozen bf16 graph", 2.0, **right()),
        timed("fused_resnet frozen bf16 [wrong]", 0.5, **right(0.9)),
    ]
    beside = [timed(COMPILED["inference"], 6.0, **right()), timed("fused_resnet frozen bf16 graph", 2.4, **right())]
    training = [
        timed(AMP["training"], 90.0, peak_MiB=20000.0, loss_is_finite=True),
        timed("fused_resnet channels_last amp bfloat16 [triton]", 45.0, peak_MiB=12000.0, loss_is_finite=True),
        timed("fused_resnet channels_last amp bfloat16 [bad]", 1.0, peak_MiB=1.0, loss_is_finite=False),
    ]
    times = {"cudnn": {"median_ms": 0.1}, "triton": {"median_ms": 0.05}, "eager channels_last": {"median_ms": 0.2}}
    rows = [
        entry("baselines", "ceilings/copy", tbs=1.5),
        entry("inference", "resnet50/b1", rows=[timed(AMP["inference"], 99.0, **right())]),
        entry("inference", "resnet50/b1", run=1, rows=inference),
        entry("inference", "resnet50/b1/compile", run=1, rows=beside),
        entry("training", "resnet50/b256", run=1, rows=training),
        entry(
            "layers", "n1", layer="64x8x8 -> 64", passes={"inference": times, "dgrad": {"cudnn": {"median_ms": 1.0}}}
        ),
        entry("micro", "launch_gap", answer="yes", detail="it is shorter"),
        entry("micro", "tma_oob_nan", status="error: MicroError: it broke"),
        entry("tests", "marked", status="failed: 1 tests", passed=10, failed=1, skipped=2),
        entry("tests", "memcheck/triton", tool="memcheck", errors=0, passed=4, failed=0, skipped=0),
    ]
    runs = [{"id": str(i), "environment": copy.deepcopy(ENVIRONMENT), "left_out": {}} for i in range(2)]
    runs[1]["environment"]["commit"] = {"sha": "0123456789abcdef", "dirty": True}
    runs[1]["left_out"] = {"tune/x": "expected to take 60 s, 4 s were left"}
    return {"schema": 1, "benchmark": "gpu", "runs": runs, "rows": rows}


def test_the_labels_are_those_that_are_measured():
    inference = {one.label("torchvision") for one in gpu_inference.torchvision_candidates(Settings())}
    training = {one.label("torchvision") for one in gpu_training.torchvision_candidates(Settings())}
    for part, labels in (("inference", inference), ("training", training)):
        assert {AMP[part], f"{AMP[part]} graph"} <= labels
    compiled = gpu_inference.COMPILED, gpu_training.COMPILED.label("torchvision")
    assert (COMPILED["inference"], COMPILED["training"]) == compiled


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "invented.json"
    target.write_text(json.dumps(document()))
    return target


def cells(table, start):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_summary_takes_ratios_within_one_measurement(path):
    table = summary(Measured(path), "resnet50")
    amp, graph, compiled, ours, *ratios = cells(table, "inference, batch 1")
    assert (amp, graph, compiled, ours) == ("8.00", "4.00", "6.00", "2.00 (frozen bf16 graph)")
    assert ratios == ["4.00x", "2.00x", "2.50x"]  # the last one with ours as it was beside the compiled one, 2.4 ms
    assert cells(table, "training step, batch 256")[3:5] == ["45.0 (channels_last amp bfloat16 [triton])", "2.00x"]
    assert cells(table, "peak memory of the step, MiB")[:5] == ["20,000", "", "", "12,000", "0.60 of it"]


def test_what_was_not_measured_says_so(path):
    table = summary(Measured(path), "resnet50")
    assert cells(table, "inference, batch 256") == ["not measured"] * 7
    assert cells(table, "training step, batch 256")[-1] == "not measured"
    assert set(cells(summary(Measured(path), "resnet18"), "inference, batch 1")) == {"not measured"}
    assert ratio(None, 1.0) == ratio(1.0, None) == "not measured"


def test_a_ratio_does_not_cross_from_one_measurement_to_another(path):
    """Without the plain comparison there is no AMP beside ours, though the compiled comparison has a row of ours."""
    changed = document()
    changed["rows"] = [row for row in changed["rows"] if row["name"] != "resnet50/b1"]
    path.write_text(json.dumps(changed))
    *absolute, against_amp, against_graph, against_compiled = cells(
        summary(Measured(path), "resnet50"), "inference, batch 1"
    )
    assert absolute == ["not measured", "not measured", "6.00", "not measured"]
    assert (against_amp, against_graph, against_compiled) == ("not measured", "not measured", "2.50x")


def test_every_table_is_printed_with_device_date_and_commits(path, capsys):
    assert report.main([str(path)]) == 0
    text = capsys.readouterr().out
    for line in (
        f"{INVENTED}, driver 1.2.3, torch 9.9, torchvision 0.99, cuDNN 90000; commit fedcba9876; 2001-02-03",
        "commit 0123456789 with changes; 2001-02-03",
        "Copy: 1.50 TB/s read plus written; bfloat16 matrix product: not measured.",
        "Tests on the device: 10 passed, 1 failed, 2 skipped.",
        "compute-sanitizer memcheck/triton: 0 errors over 4 tests.",
        "| fused_resnet frozen bf16 [wrong]: wrong result | not measured |",
        "| 64x8x8 -> 64 | 100 / 50 (2.00x, triton) | not measured | not measured | not measured |",
        "| launch_gap | yes | it is shorter |",
        "| tma_oob_nan | error | error: MicroError: it broke |",
        "- tests/marked: failed: 1 tests",
        "- tune/x: expected to take 60 s, 4 s were left",
    ):
        assert line in text, line
    assert (path.parent / "invented-inference-resnet50.png").read_bytes().startswith(b"\x89PNG")
    assert (path.parent / "invented-training-resnet50.png").exists()


def test_the_readme_gets_the_tables_between_its_markers(path, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # the second time over its own
        assert report.main([str(path), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith(f"# before\n{report.BEGIN}\n**{INVENTED}**") and text.endswith(f"{report.END}\nafter\n")
        assert "old" not in text and text.count("| inference, batch 1 |") == 2


@pytest.mark.parametrize(
    "text",
    ["no markers", report.BEGIN, f"{report.END} {report.BEGIN}", f"{report.BEGIN}{report.BEGIN}{report.END}"],
    ids=["none", "one", "crossed", "twice"],
)
def test_a_readme_without_one_place_for_them_is_left_alone(path, tmp_path, capsys, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert report.main([str(path), "--readme", str(readme)]) == 2
    said = capsys.readouterr().err
    assert f"{readme}: it must hold {report.BEGIN} and, behind it, {report.END}, each once" in said
    assert readme.read_text() == text


def test_what_was_measured_on_a_cpu_is_refused(path, capsys):
    changed = document()
    changed["runs"][0]["environment"]["gpu"] = None
    path.write_text(json.dumps(changed))
    with pytest.raises(ResultsError, match="was measured on a CPU"):
        Measured(path)
    assert report.main([str(path)]) == 2 and "no result of a GPU" in capsys.readouterr().err
    assert not list(path.parent.glob("*.png"))


def test_files_that_are_none_of_these_are_refused(tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text('{"schema": 1, "benchmark": "inference"}')
    for name in (str(other), str(tmp_path / "absent.json")):
        assert report.main([name]) == 2
        assert name in capsys.readouterr().err


def test_a_row_that_failed_again_does_not_hide_behind_its_older_figure(path):
    changed = document()
    changed["rows"].append(entry("baselines", "ceilings/copy", run=1, status="error: it broke"))
    path.write_text(json.dumps(changed))
    measured = Measured(path)
    assert measured.failed["baselines/ceilings/copy"]["status"] == "error: it broke"
    assert "baselines/ceilings/copy" in report.long(measured)
