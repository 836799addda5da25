"""What the benchmarks are made of (timing, photographs, reports), and the commands that count instead of measuring."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fused_resnet
from benchmarks import complexity, layers, roofline
from benchmarks.meters import timing
from benchmarks.record import environment, report
from benchmarks.subjects import photos
from benchmarks.subjects.graph import FUSIONS, kernels, steps
from fused_resnet.models import TORCHVISION_MODELS
from tests.support import ROOT

# ---- interleaving ----


class FakeClock:
    """A clock that moves only when a call or a sleep says so."""

    def __init__(self):
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, seconds: float):
        def run():
            self.log.append(name)
            self.now += seconds

        return run

    def time(self, call) -> float:
        before = self.now
        call()
        return self.now - before

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def options(self) -> dict:
        return {"timer": self.time, "clock": lambda: self.now, "sleep": self.sleep}


def test_interleaving_runs_every_call_once_a_round_in_changing_order():
    clock = FakeClock()
    durations = {"a": 1.0, "b": 2.0, "c": 3.0}
    calls = {name: clock.call(name, seconds) for name, seconds in durations.items()}
    fractions = []
    seen = timing.interleave(
        calls,
        seconds=60,
        max_rounds=8,
        on_round=lambda done, fraction: fractions.append((done, fraction)),
        **clock.options(),
    )
    rounds = [tuple(clock.log[i : i + 3]) for i in range(0, len(clock.log), 3)]
    assert seen.rounds == len(rounds) == 8 and seen.seconds == 48
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert seen.samples == {name: [seconds] * 8 for name, seconds in durations.items()}
    assert fractions == [(done, done / 8) for done in range(1, 9)]


@pytest.mark.parametrize(
    ("seconds", "min_rounds", "expected"),
    [(10.5, 1, 5), (9.9, 1, 4), (0.0, 3, 3)],
    ids=["fits", "does-not-fit", "minimum"],
)
def test_interleaving_starts_no_round_that_would_not_fit(seconds, min_rounds, expected):
    clock = FakeClock()
    calls = {"a": clock.call("a", 1.5)}
    seen = timing.interleave(calls, seconds=seconds, min_rounds=min_rounds, pause=0.5, **clock.options())
    assert seen.rounds == expected
    assert seen.samples["a"] == [1.5] * expected  # the pause is not in the samples


def test_interleaving_drops_a_call_that_fails_and_goes_on():
    clock = FakeClock()

    def fails():
        raise RuntimeError("out of\nmemory")

    entered = []
    calls = {"good": clock.call("good", 1.0), "bad": fails}
    seen = timing.interleave(calls, seconds=99, max_rounds=4, before=entered.append, **clock.options())
    assert seen.errors == {"bad": "RuntimeError: out of memory"}
    assert seen.samples == {"good": [1.0] * 4, "bad": []}
    assert entered.count("bad") == 1 and entered.count("good") == 4


def test_interleaving_refuses_no_rounds():
    with pytest.raises(ValueError, match="expected 1 <= min_rounds <= max_rounds, got 0 and 5"):
        timing.interleave({}, seconds=1, min_rounds=0, max_rounds=5)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_summary_agrees_with_torch_quantile(count):
    samples = torch.rand(count, dtype=torch.float64)
    seen = timing.summary(samples.tolist())
    expected = torch.quantile(samples, torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)) * 1e3
    assert [seen["median_ms"], seen["p10_ms"], seen["p90_ms"]] == pytest.approx(expected.tolist())
    assert seen["samples_ms"] == pytest.approx((samples * 1e3).tolist(), abs=1e-5)


# ---- photographs and environment ----


def test_photographs_are_prepared_as_for_imagenet():
    images = photos.batch_of_photographs(5, size=64)
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.float32 and images.is_contiguous()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (photos.MEAN, photos.STD))
    pixels = images * std + mean
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6 and pixels.std() > 0.1
    assert torch.equal(images, photos.batch_of_photographs(5, size=64))
    assert torch.equal(images[:2], photos.batch_of_photographs(2, size=64, seed=7))  # centre crops
    assert not torch.equal(images[2:], photos.batch_of_photographs(5, size=64, seed=7)[2:])
    photo = next(iter(photos.photographs().values()))
    assert min(photos.resized(photo, 224).shape[-2:]) == 256


def test_environment_names_the_machine_and_no_path():
    found = environment.environment(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert set(found["commit"]) == {"sha", "dirty"} and found["cpu"]["model"] and found["date"]
    assert str(ROOT) not in json.dumps(found)
    assert torch.__version__ in environment.headline(found)


# ---- reports ----


def test_tables_without_rich(monkeypatch, capsys):
    monkeypatch.setattr(report, "HAVE_RICH", False)
    report.show_table("title", ["row", "ms"], [["first", "1.5"], ["b", "10.25"]], ["a note"])
    rule = "-" * 12
    expected = ["title", rule, "row       ms", rule, "first    1.5", "b      10.25", rule, "a note", ""]
    assert capsys.readouterr().out.splitlines() == expected


def test_progress_without_a_terminal_prints_few_lines(capsys):
    with report.Progress("work") as bar:
        for step in range(1000):
            bar.update(step / 1000, f"step {step}")
    assert 15 <= len(capsys.readouterr().err.splitlines()) <= 21


def test_json_has_no_nan(tmp_path):
    report.write_json(tmp_path / "deep" / "a.json", {"x": [1.0, math.nan, (math.inf,)], "y": None})
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"x": [1.0, None, [None]], "y": None}


def test_a_bars_figure_stands_behind_its_whisker(monkeypatch, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    bars = [report.Bar("a", 2.0, 1.5, 4.0, True), report.Bar("b", 3.0, 2.0, 3.5, False)]
    assert report.bar_chart(tmp_path / "a.png", "title", {"one": bars}) is None
    figures = {text.get_text(): text for text in drawn[0].axes[0].texts}
    assert {text: figure.xy[0] for text, figure in figures.items()} == {"2.0": 4.0, "3.0": 3.5}


def test_rows_that_pass_their_bound_are_warned_of():
    result = {"layer": "conv", "bound_ms": 1.0, "rows": [{"label": "fast", "median_ms": 0.9}, {"label": "broken"}]}
    (warning,) = layers.beyond([result])
    assert "1 rows" in warning and "conv, fast" in warning
    assert layers.beyond([result | {"bound_ms": 0.5}]) == []


def test_chart_without_matplotlib_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    bars = {"batch 1": [report.Bar("a", 1.0, 0.9, 1.1, True)]}
    assert report.bar_chart(tmp_path / "a.png", "title", bars) == "no chart: matplotlib is not installed"
    assert not (tmp_path / "a.png").exists()


# ---- roofline and complexity ----


@pytest.fixture(scope="module")
def bounds():
    return {name: roofline.bounds(name, 256, 224, 2, 790, 4.3) for name in TORCHVISION_MODELS}


@pytest.mark.parametrize("model", TORCHVISION_MODELS)
def test_fusing_moves_fewer_bytes_and_the_same_operations(model, bounds):
    eager, conv, block = (bounds[model][fusion] for fusion in FUSIONS)
    for figure in ("megabytes", "microseconds", "kernels"):
        assert eager[figure] > conv[figure] > block[figure] > 0
    assert (
        eager["gflop"]
        == conv["gflop"]
        == block["gflop"]
        == pytest.approx(2 * complexity.count(*complexity.networks()[model])["gmacs"])
    )


def test_bottleneck_traffic_by_hand():
    """A stride-1 bottleneck without projection, in feature maps T of its C channels: its input and output are 4T."""
    with torch.device("meta"):
        network = fused_resnet.resnet50()
    block = [step for step in steps(network, 2, 224) if step.block == "layer1.1"]
    unit = 2 * 64 * 56 * 56
    seen = {fusion: sum(kernel.activations for kernel in kernels(block, fusion)) / unit for fusion in FUSIONS}
    # eager: convolutions 5+2+5, batch norms 2+2+8, ReLUs 2+2+8, add 12; conv-fused: 5, 2 and 1+4+4; fused whole: 4+4.
    assert seen == {"eager": 48, "conv-fused": 16, "block-fused": 8}


def test_strided_projection_reads_only_what_it_samples():
    with torch.device("meta"):
        network = fused_resnet.resnet50()
    found = {kernel.steps[0].name: kernel for kernel in kernels(steps(network, 1, 224), "conv-fused")}
    assert found["layer2_0_downsample_0"].activations == 256 * 28 * 28 + 512 * 28 * 28
    assert found["conv1"].activations == 3 * 224 * 224 + 64 * 56 * 56  # the stem writes what is left after pooling


def test_roofline_command(tmp_path):
    target = tmp_path / "roofline.json"
    arguments = [
        "--model",
        "resnet50",
        "--batch",
        "8",
        "--itemsize",
        "4",
        "--tflops",
        "0.2",
        "--tbs",
        "0.02",
        "--json",
        str(target),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.roofline", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "resnet50 block-fused" in done.stdout
    figures = json.loads(target.read_text())["models"]["resnet50"]["eager"]
    assert figures["images_per_s"] == pytest.approx(1e6 / figures["microseconds"])
    assert figures["gflop"] == pytest.approx(8.18, abs=0.01)
    assert roofline.main(["--tflops", "0"]) == 2


def test_graph_names_an_operation_it_does_not_know():
    with pytest.raises(ValueError, match="Sigmoid.* is an operation of unknown traffic"):
        steps(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid()).to("meta"), 1, 32)


def test_complexity_command_gives_the_published_numbers(tmp_path, capsys):
    target = tmp_path / "complexity.json"
    assert complexity.main(["--json", str(target)]) == 0
    found = json.loads(target.read_text())["networks"]
    assert math.floor(10 * found["resnet34"]["gmacs"]) / 10 == 3.6  # 3.66 with projections in its shortcuts
    assert round(found["resnet34 (option A)"]["gmacs"], 1) == round(found["plain34"]["gmacs"], 1) == 3.6
    assert round(found["vgg19"]["gmacs"], 1) == 19.6
    parameters = {name: found[name]["parameters"] for name in ("resnet50", "vgg16", "vgg19", "alexnet", "lenet5")}
    assert parameters == {
        "resnet50": 25557032,
        "vgg16": 138357544,
        "vgg19": 143667240,
        "alexnet": 61100840,
        "lenet5": 61706,
    }
    assert found["resnet34 (option A)"]["parameters"] == found["plain34"]["parameters"]
    assert set(TORCHVISION_MODELS) <= set(found)
    printed = capsys.readouterr().out
    assert "vgg19" in printed and "19.632" in printed


def test_option_a_network_runs():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = complexity.resnet34_option_a().eval()(torch.randn(1, 3, 64, 64))
    assert out.shape == (1, 1000) and torch.isfinite(out).all()
    assert counter.get_total_flops() > 0
