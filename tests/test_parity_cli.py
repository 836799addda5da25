"""`python -m fused_resnet.parity`: passes where it must, fails where it must, and says which row."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import fused_resnet
from fused_resnet import models
from fused_resnet.backends import onednn
from fused_resnet.parity import check, check_model, compare, randomize, stage_outputs
from fused_resnet.parity.__main__ import main

GOLD = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def errors_of(ours, baseline=(1.0, -2.0, 3.0), gold=GOLD):
    return compare("y", torch.tensor(ours), torch.tensor(baseline), gold)


def test_the_rule_is_twice_the_baseline_and_a_rounding():
    eps = torch.finfo(torch.float32).eps
    assert errors_of((1.0, -2.0, 3.0)).passed
    assert errors_of((1.0, -2.0 * (1 + eps), 3.0)).passed
    assert not errors_of((1.0, -2.0, 3 * (1 + 8 * eps))).passed
    assert errors_of((1.0, -2.0, 3.19), baseline=(1.0, -2.0, 3.1)).passed
    row = errors_of((1.0, -2.0, 3.21), baseline=(1.0, -2.0, 3.1))
    assert not row.passed and row.worst == (2,)


def test_one_bad_element_among_many_is_seen():
    gold = torch.randn(100_000, dtype=torch.float64)
    ours = gold.float()
    ours[4321] += 1e-4
    row = compare("y", ours, gold.float(), gold)
    assert not row.passed and row.worst == (4321,)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_values_must_stand_where_they_stand_in_float64(value):
    gold = torch.tensor([1.0, value, 3.0], dtype=torch.float64)
    there, elsewhere = (1.0, value, 3.0), (value, 2.0, 3.0)
    assert errors_of(there, there, gold).passed
    assert not errors_of((1.0, 2.0, 3.0), there, gold).passed
    assert not errors_of(elsewhere, there, gold).passed
    assert not errors_of(there).passed


def test_outputs_that_do_not_match_are_no_comparison():
    with pytest.raises(ValueError, match=r"y: .*one shape.*\(3,\), \(2,\) and \(3,\)"):
        errors_of((1.0, 2.0, 3.0), baseline=(1.0, 2.0))
    with pytest.raises(ValueError, match="y: ours is torch.float32 where the baseline is torch.float64"):
        compare("y", GOLD.float(), GOLD, GOLD)


def test_hooks_on_stages_leave_the_fused_path_and_are_taken_off():
    model = fused_resnet.resnet18().eval()
    image = torch.randn(1, 3, 64, 64)
    with fused_resnet.ops.dispatch.recording() as decisions:
        outputs = stage_outputs(model, image)
    reasons = [decision.unfused_reason for decision in decisions if decision.module is not None]
    assert len(reasons) == 10 and not any(reasons)
    assert [tuple(output.shape) for output in outputs.values()] == [
        *((1, 64 << max(i - 1, 0), 16 >> max(i - 1, 0), 16 >> max(i - 1, 0)) for i in range(5)),
        (1, 1000),
    ]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_randomize_leaves_no_norm_as_it_was_initialised():
    model = fused_resnet.cifar_resnet20().eval()
    momentum = model.bn1.momentum
    randomize(model, torch.randn(2, 3, 32, 32))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not module.running_mean.eq(0).any() and not module.running_var.eq(1).any()
            assert not module.weight.eq(1).all() and not module.bias.eq(0).all()
    assert not model.training and model.bn1.momentum == momentum


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20"])
def test_passes(name, frozen):
    report = check_model(name, size=None if name.startswith("cifar") else 72, frozen=frozen)
    assert report.passed, str(report)
    assert sum(report.paths.values()) >= 9 and all(path.startswith("fused (") for path in report.paths)
    last = 3 if name.startswith("cifar") else 4
    assert [row.name for row in report.rows] == ["stem", *(f"layer{i}" for i in range(1, last + 1)), "logits"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_passes_in_half_precision(dtype):
    assert check_model("resnet18", dtype=dtype, size=40).passed


def test_without_torchvision_the_reference_takes_its_place(monkeypatch):
    monkeypatch.setattr(check, "import_torchvision", lambda: None)
    report = check_model("resnet18", size=40)
    assert report.passed and report.baseline == "its own reference backend"


def break_second_stage(monkeypatch):
    """Make the oneDNN backend wrong where it makes 128 channels: in layer2."""
    right = onednn.conv_scale_shift_act

    def wrong(x, weight, *arguments, **keywords):
        y = right(x, weight, *arguments, **keywords)
        return y * 1.0001 if weight.shape[0] == 128 else y

    monkeypatch.setattr(onednn, "conv_scale_shift_act", wrong)


def test_a_failing_stage_is_named_and_the_exit_status_is_one(monkeypatch, capsys, tmp_path):
    break_second_stage(monkeypatch)
    path = tmp_path / "report.json"
    assert main(["--model", "resnet18", "--size", "40", "--device", "cpu", "--json", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "FAILED, worst at" in line] == ["layer2", "layer3", "layer4", "logits"]
    assert lines[-1].startswith("FAILED: layer2")
    written = json.loads(path.read_text())
    assert not written["passed"]
    assert {row["name"]: row["passed"] for row in written["rows"]}["layer1"]


def test_the_command_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "fused_resnet.parity", "--model", "resnet18", "--size", "40", "--device", "cpu"]
    result = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "passed"
    assert json.loads(path.read_text())["passed"] is True


def test_weights_are_compared_as_they_are(tmp_path, capsys):
    model = fused_resnet.resnet18()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    assert main(["--model", "resnet18", "--size", "40", "--weights", str(tmp_path / "weights.pth")]) == 0
    assert main(["--model", "resnet18", "--size", "40", "--weights", str(tmp_path / "absent.pth")]) == 2
    assert "absent.pth" in capsys.readouterr().err


def test_list_names_every_model(capsys):
    assert main(["--list"]) == 0
    assert set(capsys.readouterr().out.split()) == {*models.TORCHVISION_MODELS, *models.CIFAR_MODELS}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet51"], "unknown model 'resnet51': expected one of resnet18"),
        (["--backend", "cudnn"], "unknown backend 'cudnn'"),
        (["--batch", "0"], "at least 1"),
        (["--model", "resnet18", "--device", "nowhere"], "nowhere"),
        (
            ["--model", "resnet18", "--size", "40", "--dtype", "float16", "--backend", "onednn", "--device", "cpu"],
            "takes float32",
        ),
    ],
)
def test_a_comparison_that_cannot_be_made_exits_with_two(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none, and here is one")
def test_a_gpu_that_is_not_there_exits_with_two(capsys):
    assert main(["--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_a_dtype_that_float64_cannot_judge_is_refused():
    with pytest.raises(ValueError, match="float64 can judge, got torch.float64"):
        check_model("resnet18", dtype=torch.float64)
