"""`make test-oldest`: what it installs is the oldest that pyproject.toml allows."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest

from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / ".ci/constraints-oldest.txt").read_text(), re.M))


def lower_bound(name: str) -> str:
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["triton"]
    return next(bound[1] for line in lines if (bound := re.match(rf"{name}>=([\d.]+)(;|$)", line)))


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_the_oldest_version_is_the_one_that_is_tested(name):
    assert PINNED[name] == lower_bound(name) + ".0"


def test_the_oldest_python_is_the_one_that_is_tried_first():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"${{PYTHON:-python{oldest} " in (ROOT / ".ci/environment").read_text()


def test_what_is_said_to_be_supported_is_what_is_required():
    torch, triton, python = lower_bound("torch"), lower_bound("triton"), PROJECT["requires-python"].removeprefix(">=")
    contributing, readme = (" ".join((ROOT / f"{name}.md").read_text().split()) for name in ("CONTRIBUTING", "README"))
    assert f"Python {python} to 3.13, torch from {torch} and triton from {triton}" in contributing
    assert f"Python {python} to 3.13, torch {torch} or newer" in readme


def test_all_other_versions_are_those_of_every_other_target(tmp_path):
    """A stand-in for Python, which says what pip is given; each name stands there once."""
    (tmp_path / ".ci").mkdir()
    for name in ("constraints.txt", "constraints-oldest.txt", "environment"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv-oldest/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$2" != pip ] || echo "$FUSED_RESNET_CUDA_ARCHS: $@" >&2\n')
    python.chmod(0o755)
    command = [tmp_path / ".ci/environment", "oldest"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)}
    )
    assert result.returncode == 0 and result.stdout.strip() == str(python), result.stderr
    assert "none: -m pip install" in result.stderr and "--constraint .venv-oldest/constraints.txt" in result.stderr
    merged = re.findall(r"^([\w-]+)([=<]=[\w.]+)$", (tmp_path / ".venv-oldest/constraints.txt").read_text(), re.M)
    usual = dict(re.findall(r"^([\w-]+)([=<]=[\w.]+)$", (ROOT / ".ci/constraints.txt").read_text(), re.M))
    assert len(merged) == len(dict(merged))
    assert dict(merged) == usual | {name: f"=={version}" for name, version in PINNED.items()}
