"""`python -m fused_resnet.parity`: passes where it must, fails where it must, and says which row."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch

import fused_resnet
from fused_resnet import models
from fused_resnet.backends import onednn
from fused_resnet.parity import check, check_model, check_modules, junit, randomize, stage_outputs
from fused_resnet.parity.__main__ import main
from tests.support import hang


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
    assert report.verdict.endswith("its own reference backend, NOT torchvision: it is not installed")
    with pytest.raises(ValueError, match="resnet18 cannot be held against torchvision's: it is not installed"):
        check_model("resnet18", size=40, require_torchvision=True)
    with pytest.raises(ValueError, match="compared with itself"):
        check_model("resnet18", size=40, backend="reference")


def test_a_model_that_torchvision_lacks_says_what_it_was_held_against(capsys):
    assert main(["--model", "cifar_resnet20", "--device", "cpu"]) == 0
    assert "NOT torchvision: it has no cifar_resnet20" in capsys.readouterr().out.splitlines()[-1]
    assert main(["--model", "cifar_resnet20", "--device", "cpu", "--require-torchvision"]) == 2
    assert "it has no cifar_resnet20" in capsys.readouterr().err


def test_another_seed_is_another_comparison():
    first, again, other = (check_model("cifar_resnet20", seed=seed) for seed in (0, 0, 1))
    assert first.rows == again.rows and all(a != b for a, b in zip(first.rows, other.rows, strict=True))


def test_what_proves_nothing_is_refused():
    model = fused_resnet.cifar_resnet20().eval()
    image = torch.randn(2, 3, 32, 32)
    with pytest.raises(ValueError, match="compared with itself"):
        check_modules(model, model, image)
    with pytest.raises(ValueError, match="Identity has no parameters"):
        check_modules(torch.nn.Identity(), model, image)
    with pytest.raises(ValueError, match=r"empty image proves nothing, got shape \(0, 3, 32, 32\)"):
        check_modules(model, fused_resnet.cifar_resnet20().eval(), image[:0])


def test_a_baseline_that_overflows_is_no_judge_and_names_the_stage():
    model = fused_resnet.cifar_resnet20().eval()
    with torch.no_grad():
        model.layer2[0].bn1.weight.fill_(1e38)  # float32 overflows in the second stage, float64 does not
    twin = fused_resnet.cifar_resnet20().eval()
    twin.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="layer2: the reference in torch.float32 is (nan|-?inf) at .* cannot judge"):
        check_modules(model, twin, torch.randn(2, 3, 32, 32))


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
    assert [line.split()[0] for line in lines if " FAILED, " in line][0] == "layer2"
    assert lines[-1].startswith("FAILED: layer2")
    written = json.loads(path.read_text())
    assert not written["passed"]
    passed = {row["name"]: row["passed"] for row in written["reports"][0]["rows"]}
    assert passed["stem"] and passed["layer1"] and not passed["layer2"]


def test_several_models_in_one_run_and_in_junit(monkeypatch, capsys, tmp_path):
    break_second_stage(monkeypatch)
    path = tmp_path / "report.xml"
    models = ["resnet18", "cifar_resnet20", "resnet18"]
    assert main(["--model", *models, "--size", "40", "--device", "cpu", "--junit", str(path)]) == 1
    verdicts = capsys.readouterr().out.splitlines()[-2:]
    assert verdicts[0].startswith("FAILED: layer2") and verdicts[1].startswith("passed: cifar_resnet20")
    suites = {suite.get("name"): suite for suite in ElementTree.parse(path).getroot()}
    assert int(suites["resnet18"].get("failures")) >= 1 and suites["cifar_resnet20"].get("failures") == "0"
    failed = [case.get("name") for case in suites["resnet18"] if case.find("failure") is not None]
    assert failed[0] == "layer2"


def test_junit_names_what_could_not_be_compared():
    root = ElementTree.fromstring(junit([], {"resnet51": "unknown model"}))
    assert root[0].get("errors") == "1" and root[0][0].find("error").get("message") == "unknown model"


def test_a_model_that_cannot_be_compared_does_not_hide_the_others(capsys, tmp_path):
    path = tmp_path / "report.json"
    assert main(["--model", "resnet51", "cifar_resnet20", "--device", "cpu", "--json", str(path)]) == 2
    written = json.loads(path.read_text())
    assert list(written["could_not_compare"]) == ["resnet51"] and not written["passed"]
    assert [report["passed"] for report in written["reports"]] == [True]


@pytest.mark.parametrize("option", ["--json", "--junit"])
def test_a_report_that_cannot_be_written_is_said_before_anything_runs(option, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("fused_resnet.parity.__main__.check_model", lambda *_: pytest.fail("it ran"))
    assert main([option, str(tmp_path / "absent" / "report")]) == 2
    assert "could not write the report" in capsys.readouterr().err
    assert main([option, str(tmp_path)]) == 2


def test_the_command_in_a_process_of_its_own(tmp_path):
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "fused_resnet.parity", "--model", "resnet18", "--size", "40", "--device", "cpu"]
    result = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, timeout=hang.SECONDS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("passed: resnet18: 6 outputs")
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
        (["--model", "resnet18", "--size", "1"], "leave resnet18's last stage 2 values a channel"),
        (["--model", "resnet18", "--size", "32", "--batch", "3"], "last stage 3 values a channel"),
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
