"""What is built and installed: wheel and sdist contents, requirements, the Makefile's environment."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import fused_resnet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
PURE = "FUSED_RESNET_CUDA_ARCHS"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
TABLES = ROOT / "fused_resnet" / "tuning" / "tables"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "fused_resnet", copy / "fused_resnet", ignore=LEFT_OUT)
    shutil.copytree(ROOT / ".ci", copy / ".ci")
    shutil.copytree(ROOT / "csrc", copy / "csrc", ignore=LEFT_OUT)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "Makefile"):
        shutil.copy(ROOT / name, copy)
    return copy


def build(tree: Path, hook: str, into: Path) -> Path:
    into.mkdir(exist_ok=True)
    """The hook's result, of a build without the compiled extension; `test_extension.py` builds that."""
    command, environment = [sys.executable, "-c", BUILD, hook, str(into)], os.environ | {PURE: "none"}
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    return into / result.stdout.split()[-1]


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return build(checkout, "build_wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_pure_python_and_holds_the_package_alone(wheel):
    assert wheel.name == f"fused_resnet-{fused_resnet.__version__}-py3-none-any.whl"
    package = {
        str(path.relative_to(ROOT)) for path in (ROOT / "fused_resnet").rglob("*.py") if "__pycache__" not in path.parts
    }
    tables = {str(path.relative_to(ROOT)) for path in TABLES.rglob("*") if path.suffix in (".json", ".md")}
    inside = {name for name in files_of(wheel) if ".dist-info/" not in name}
    assert inside == package | tables


def test_the_wheel_says_what_it_needs(wheel):
    name = next(name for name in files_of(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "BSD-3-Clause"
    assert {"bench", "test", "peers", "triton", "lint"} <= set(metadata.get_all("Provides-Extra"))
    plain = {line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert plain == {"torch>=2.11", "numpy"}


def test_an_sdist_builds_the_same_wheel(checkout, wheel, tmp_path):
    sdist = build(checkout, "build_sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    sources = {path.relative_to(checkout) for path in (checkout / "csrc").rglob("*") if path.is_file()}
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert len(sources) > 20 and not [path for path in sources if not (unpacked / path).is_file()]
    again = build(unpacked, "build_wheel", tmp_path / "wheel")
    assert files_of(again) == files_of(wheel)


def test_an_installed_wheel_works_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import fused_resnet, fused_resnet.tuning; print(fused_resnet.__file__, fused_resnet.__version__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split() == [str(tmp_path / "site/fused_resnet/__init__.py"), fused_resnet.__version__]


def requirement_names(lines: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in lines}


def test_users_are_pinned_to_nothing_and_ci_to_everything():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]
    assert not [line for line in wanted if re.search(r"==\s*\d|<|~=", line)]
    constraints = [
        line for line in (ROOT / ".ci/constraints.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    loose = [line for line in constraints if "==" not in line]
    assert len(loose) == 1 and re.fullmatch(r"triton<=[\d.]+", loose[0])
    assert requirement_names(wanted) - {"fused-resnet"} <= requirement_names(constraints)


def test_nothing_names_a_machine():
    paths = re.compile("/" + r"(root|work|home)/\w|/" + r"opt/(?!nvidia)\w")
    suffixes = {".py", ".toml", ".md", ".txt", ".json", ".cfg", ".yml", ".in", ".cpp", ".cu", ".cuh", ".h", ".hpp", ""}
    folders = [ROOT / name for name in ("fused_resnet", "benchmarks", "tests", "csrc", ".ci")]
    sources = [path for folder in folders if folder.is_dir() for path in folder.rglob("*")]
    sources += [path for path in ROOT.iterdir() if path.is_file()]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if paths.search(line)
    ]
    assert not found


def environment(checkout: Path, extra: str, python: str) -> subprocess.CompletedProcess:
    command = [str(checkout / ".ci/environment"), extra]
    variables = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), "PYTHON": python, PURE: "none"}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120)


def test_make_names_the_pythons_it_looked_for(checkout):
    result = environment(checkout, "test", "python-that-is-not-there")
    assert result.returncode == 1 and result.stdout == ""
    assert "No Python 3.11 to 3.13 among: python-that-is-not-there" in result.stderr


def test_make_uses_a_python_whose_torch_sees_a_gpu_as_it_is(checkout, tmp_path):
    """A stand-in torch that sees a GPU, in front of the Python that runs these tests."""
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = environment(checkout, "test", str(python))
    assert result.stdout.strip() == str(python), result.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("target", ["help", "bench", "test", "lint", "format", "info", "clean"])
def test_the_makefile_has_its_targets(checkout, target):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    result = subprocess.run(["make", "-n", target], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_ci_run_is_executable_and_fails_when_a_step_fails():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and os.access(ROOT / ".ci/environment", os.X_OK)
    assert "set -euo pipefail" in script.read_text()
