"""`python -m fused_resnet.info`: what it says, and that asking changes nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

import fused_resnet
from fused_resnet import info
from fused_resnet.backends import BACKENDS
from fused_resnet.backends.cuda import availability
from tests.support import hang


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    return subprocess.run(
        [sys.executable, "-m", "fused_resnet.info", *arguments],
        capture_output=True,
        text=True,
        env=variables,
        timeout=hang.SECONDS,
    )


def test_json_and_text_say_the_same():
    result = command("--json", CUDA_VISIBLE_DEVICES="")
    report = json.loads(result.stdout)
    assert report["versions"]["fused_resnet"] == fused_resnet.__version__
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"] == str(torch.__version__)
    assert set(report["backends"]) == set(BACKENDS)
    assert report["backends"]["reference"] == {"on": True, "reason": "available"}
    assert not report["backends"]["triton"]["on"] and "GPU" in report["backends"]["triton"]["reason"]
    assert report["extension"]["on"] == (availability.extension() is not None)
    text = info.text(report)
    for part in (*report["backends"], *report["versions"], "compiled extension", report["extension"]["reason"]):
        assert part in text


def test_each_state_of_a_backend_has_its_reason(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    states = info.report()["backends"]
    assert not states["onednn"]["on"] and "oneDNN" in states["onednn"]["reason"]


class Compiled:
    """A stand-in for the compiled extension."""

    @staticmethod
    def kernels() -> dict[str, str]:
        return {"one": "sm_80 sm_90a", "two": "sm_80 sm_90a", "three": "sm_90a"}


def test_the_extension_says_what_it_was_compiled_for_and_why_auto_takes_none_of_it(monkeypatch):
    monkeypatch.setattr(availability, "extension", lambda: Compiled)
    state = info.report()["extension"]
    assert state["on"] and "kernels: 2 for sm_80 sm_90a, 1 for sm_90a; " in state["reason"]
    assert "'auto' takes none" in state["reason"] and "use_backend('cuda')" in state["reason"]


def test_a_missing_extension_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(availability, "extension", lambda: None)
    monkeypatch.setattr(availability, "_import_error", lambda: f"installed without it; {availability.INSTALL}")
    assert info.report()["extension"] == {"on": False, "reason": f"installed without it; {availability.INSTALL}"}
    assert "nvcc" in availability.INSTALL and not info.report()["backends"]["cuda"]["on"]


def test_a_package_that_is_not_there_is_said_to_be_absent(monkeypatch):
    monkeypatch.setattr(info, "PACKAGES", ("torch", "a-package-that-nobody-has"))
    assert info.report()["versions"]["a-package-that-nobody-has"] is None
    assert "not there" in info.text(info.report())


def test_the_backend_asked_for_is_shown_also_when_there_is_none_of_that_name():
    asked = command(FUSED_RESNET_BACKEND="onednn")
    unknown = command(FUSED_RESNET_BACKEND="cudnn")
    assert asked.returncode == unknown.returncode == 0
    assert "backends (asked for: onednn)" in asked.stdout
    assert "backends (asked for: cudnn, which is none" in unknown.stdout


GPU_ROW = ["A GPU", "9.0", "1024 MiB", "1.2.3"]


@pytest.mark.parametrize(
    ("named", "counted", "expected"),
    [
        ([], 0, []),
        ([GPU_ROW], 1, ["A GPU"]),
        ([GPU_ROW], 0, ["A GPU", "torch sees none of these"]),
        ([], 2, ["torch counts 2"]),
    ],
)
def test_gpus_are_named_without_a_cuda_context(monkeypatch, named, counted, expected):
    monkeypatch.setattr(info, "_nvidia_smi", lambda: named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: counted)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("opened a CUDA context"))
    gpus = info._gpus()  # the report asks the backends too, and a CUDA build's answer with what the device can do
    assert len(gpus) == len(expected)
    assert all(gpu["name"].startswith(name) for gpu, name in zip(gpus, expected))


def test_a_driver_tool_that_fails_names_no_gpu(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert info._nvidia_smi() == []
    tool.write_text("#!/bin/sh\necho 'A GPU, 9.0, 1024 MiB, 1.2.3'\n")
    assert info._nvidia_smi() == [GPU_ROW]
