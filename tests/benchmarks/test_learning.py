"""The commands that train: they read their data, run, report what they found and refuse what they cannot use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import convergence, degradation, training
from benchmarks.learning import data as datasets
from benchmarks.learning import train
from benchmarks.subjects import steps
from tests.support import ROOT, hang

from .test_data import write_image_folder

TINY = ["--device", "cpu", "--quiet"]


# ---- the training step ----


def run_training(folder: Path, *arguments: str) -> tuple[int, dict]:
    fixed = ["--model", "resnet18", "--size", "32", "--batch", "4", "--rounds", "1", "--seconds", "0"]
    status = training.main([*TINY, *fixed, "--out", str(folder), *arguments])
    return status, json.loads((folder / "training.json").read_text())


def test_training_writes_what_it_promises(tmp_path, capsys):
    status, document = run_training(tmp_path, "--backend", "reference")
    assert status == 0, capsys.readouterr().err
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    (result,) = document["batches"]
    rows = {row["label"]: row for row in result["rows"]}
    assert set(rows) == {"fused_resnet channels_last", "torchvision channels_last", "torchvision"}
    for row in rows.values():
        assert row["status"] == "ok" and len(row["samples_ms"]) == 1
        assert row["images_per_s"] == pytest.approx(4e3 / row["median_ms"])
        assert row["parity"]["loss_relative"] < 1e-4 and 0 < row["parity"]["gradient_rms"] < 0.1
    assert rows["torchvision channels_last"]["speedup_vs_eager"] == 1
    assert rows["torchvision channels_last"]["error_vs_eager"] == 1
    assert "resnet18 training, batch 4, 32 x 32, 1 rounds" in capsys.readouterr().out


def test_training_fails_when_our_gradients_are_wrong(monkeypatch, tmp_path, capsys):
    gradients = steps.Step.gradients

    def wrong(step):
        scale = 1.5 if step.backend == "reference" else 1.0
        return {name: scale * gradient for name, gradient in gradients(step).items()}

    monkeypatch.setattr(steps.Step, "gradients", wrong)
    status, _ = run_training(tmp_path, "--backend", "reference")
    assert status == 1
    message = "FAILED batch 4, fused_resnet channels_last: relative RMS error of the gradients is 5.0e-01"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--batch", "1"], "--batch 1: expected at least 2"), (["--size", "8"], "expected --size of at least 32")],
    ids=["batch", "size"],
)
def test_training_refuses_bad_arguments(arguments, message, capsys):
    assert training.main([*TINY, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_step_starts_again_from_the_same_weights():
    torch.manual_seed(1)
    x = torch.randn(2, 4, 5, 5)
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    step = steps.Step(model, x, torch.tensor([0, 2]), None, "auto")
    first, gradients = step().item(), step.gradients()
    assert step().item() != first
    step.restore()
    assert step().item() == first
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in step.gradients().items())


def test_recipes_follow_the_device():
    labels = [recipe.label("eager") for recipe in steps.recipes(torch.device("cuda"), torch.bfloat16, True)]
    assert labels[:4] == [
        "fused_resnet channels_last amp bfloat16",
        "eager channels_last amp bfloat16",
        "fused_resnet channels_last amp bfloat16 graph",
        "eager channels_last amp bfloat16 graph",
    ]
    assert labels[4:] == [
        "eager channels_last amp bfloat16 compile default",
        "fused_resnet channels_last amp bfloat16 compile default",
        "eager channels_last amp bfloat16 compile max-autotune",
    ]
    assert len(steps.recipes(torch.device("cpu"), None, False)) == 3


# ---- the commands that train ----


def shortened(monkeypatch) -> None:
    """The digits, but few."""
    found = datasets.digits()

    def few(*_):
        sets = [datasets.Tensors(part.images[:96], part.labels[:96]) for part in (found.train, found.test)]
        return datasets.Data("digits", *sets, classes=10, shift=1, flip=False)

    monkeypatch.setattr(datasets, "load", few)


def test_both_rows_learn_the_same_from_a_seed(monkeypatch, tmp_path, capsys):
    shortened(monkeypatch)
    arguments = [*TINY, "--model", "cifar_resnet20", "--epochs", "2", "--batch", "32", "--seeds", "2"]
    assert convergence.main([*arguments, "--at-least", "101", "--out", str(tmp_path)]) == 1
    assert "expected at least 101.0 %" in capsys.readouterr().err
    document = json.loads((tmp_path / "convergence.json").read_text())
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")
    assert [(run["row"], run["seed"]) for run in document["runs"]] == [
        ("fused_resnet", 0),
        ("eager", 0),
        ("fused_resnet", 1),
        ("eager", 1),
    ]
    for ours, eager in zip(document["runs"][::2], document["runs"][1::2], strict=True):
        assert ours["loss"] == pytest.approx(eager["loss"], rel=2e-2)
    assert document["runs"][0]["loss"] != document["runs"][2]["loss"]


def test_verdict_allows_the_spread_and_no_more():
    def runs(ours, eager):
        rows = {"fused_resnet": ours, "eager": eager}
        return [{"row": row, "accuracy": [0.0, value]} for row, values in rows.items() for value in values]

    found = convergence.verdict(runs([0.98, 0.97], [0.96, 0.97]), 100)
    assert found["agree"] and found["difference"] == pytest.approx(0.01) == found["allowed"]
    assert not convergence.verdict(runs([0.98, 0.98], [0.96, 0.97]), 1000)["agree"]
    assert convergence.verdict(runs([0.98], [0.97]), 100)["agree"]


def test_schedule_warms_up_and_comes_down():
    schedule = train.Schedule(1, 2, rate=0.4, warm_up=0.1)
    rates = [train.rate_at(progress, schedule) for progress in (0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([0.2, 0.4, 0.2, 0.0], abs=1e-6)


def test_degradation_draws_plain_and_residual(monkeypatch, tmp_path, capsys):
    shortened(monkeypatch)
    arguments = [*TINY, "--depth", "8", "14", "--epochs", "2", "--batch", "32", "--out", str(tmp_path)]
    assert degradation.main(arguments) == 0
    document = json.loads((tmp_path / "degradation.json").read_text())
    assert (tmp_path / "degradation.png").read_bytes().startswith(b"\x89PNG")
    assert [(run["kind"], run["depth"]) for run in document["runs"]] == [
        ("plain", 8),
        ("residual", 8),
        ("plain", 14),
        ("residual", 14),
    ]
    for run in document["runs"]:
        assert len(run["training_error"]) == len(run["gradients"]) == 2
        assert all(len(epoch) == run["depth"] - 1 and min(epoch.values()) > 0 for epoch in run["gradients"])
    assert "plain 14" in capsys.readouterr().out


def test_a_plain_network_is_the_residual_one_without_its_skips():
    plain, residual = (degradation.network(kind, 8, 10, seed=3) for kind in degradation.KINDS)
    state = residual.state_dict()
    assert {name: value.shape for name, value in plain.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    block, original = plain.layer1[0], residual.layer1[0]
    x = torch.randn(2, 16, 8, 8)
    y = original.bn1(original.conv1(x)).relu()
    expected = original.bn2(original.conv2(y)).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("command", [convergence, degradation], ids=["convergence", "degradation"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--rate", "0"], "--rate 0.0: expected more than 0"),
        (["--data", "no/such"], "--data no/such: no such folder"),
        (["--batch", "4096"], "--batch 4096: the training set has only 1437 images"),
        (["--device", "cuda:99"], "--device cuda:99: PyTorch sees"),
    ],
    ids=["epochs", "rate", "data", "batch", "device"],
)
def test_training_commands_refuse_bad_arguments(command, arguments, message, tmp_path, capsys):
    assert command.main([*TINY, "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_models_and_depths_are_refused(capsys):
    assert convergence.main([*TINY, "--model", "freeze"]) == 2
    assert "--model freeze: expected one of resnet18, " in capsys.readouterr().err
    assert degradation.main([*TINY, "--depth", "9"]) == 2
    assert "depth must be 6 n + 2" in capsys.readouterr().err


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_convergence_under_torchrun(tmp_path):
    data = write_image_folder(tmp_path / "shades")
    # alone, it takes a port that is free at that moment, and not one that somebody found free before
    launch = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "benchmarks.convergence"]
    small = ["--model", "cifar_resnet20", "--size", "8", "--epochs", "1", "--batch", "8", "--seeds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *TINY, *small, "--data", str(data), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=hang.SECONDS,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "convergence.json").read_text())
    assert document["processes"] == 2 and document["images"] == {"train": 8, "test": 8}
    assert done.stdout.count("cifar_resnet20 on shades, 1 epochs") == 1  # only the first process reports
    ours, eager = document["runs"]
    assert ours["loss"] == pytest.approx(eager["loss"], rel=2e-2)
