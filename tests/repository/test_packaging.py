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
from importlib import metadata
from pathlib import Path

import pytest

import fused_resnet
from fused_resnet import _torchvision
from tests.support import ROOT, hang

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, BUILD_SYSTEM = PYPROJECT["project"], PYPROJECT["build-system"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
PURE = "FUSED_RESNET_CUDA_ARCHS"
# What tools leave behind in a checkout, and what no build reads.
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__",
    "*.egg-info",
    "*.so",
    ".git",
    ".venv*",
    "build",
    "dist",
    ".*_cache",
    ".hypothesis",
    "latest",
    "shared",
)
TABLES = ROOT / "fused_resnet" / "tuning" / "tables"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that building leaves nothing behind."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "checkout", ignore=LEFT_OUT)


def build(tree: Path, hook: str, into: Path) -> Path:
    """The hook's result, of a build without the compiled extension; `test_extension.py` builds that."""
    into.mkdir(exist_ok=True)
    command, environment = [sys.executable, "-c", BUILD, hook, str(into)], os.environ | {PURE: "none"}
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=hang.SECONDS)
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
    assert inside == package | tables | {"fused_resnet/_C.txt", "fused_resnet/py.typed"}


def test_its_page_on_an_index_has_no_link_that_leads_nowhere(wheel):
    name = next(name for name in files_of(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(name).decode()
    assert "\nDescription-Content-Type: text/markdown" in text and "## Measured" in text
    assert all(target.startswith(("https://", "#")) for target in re.findall(r"\]\(([^)]*)\)", text))
    assert re.search(r"\]\((?!https://|#)", (ROOT / "README.md").read_text()), "the repository's own page has them"


def test_the_wheel_says_what_it_needs(wheel):
    name = next(name for name in files_of(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        said = email.message_from_bytes(archive.read(name))
    assert said["Requires-Python"] == ">=3.11"
    # as setuptools writes it from 77 on, or before
    assert "BSD-3-Clause" in (said["License-Expression"], said["License"])
    assert [name for name in files_of(wheel) if name.endswith("/LICENSE") and ".dist-info/" in name]
    assert {"bench", "test", "peers", "triton", "lint"} <= set(said.get_all("Provides-Extra"))
    plain = {line for line in said.get_all("Requires-Dist") if "extra ==" not in line}
    assert plain == {"torch>=2.11", "numpy"}


@pytest.fixture(scope="module")
def unpacked(checkout, tmp_path_factory) -> Path:
    """An sdist, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("sdist")
    sdist = build(checkout, "build_sdist", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked" / sdist.name.removesuffix(".tar.gz")


def test_an_sdist_builds_the_same_wheel(unpacked, wheel, tmp_path):
    assert files_of(build(unpacked, "build_wheel", tmp_path / "wheel")) == files_of(wheel)


def test_an_sdist_holds_every_file_of_the_repository(unpacked):
    if shutil.which("git") is None:
        pytest.skip("there is no git to ask for the files")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=hang.SECONDS
    ).stdout.split("\n")
    tracked = [name for name in listed if name and (ROOT / name).is_file()]
    if not tracked:
        pytest.skip("this is no git checkout but, say, an sdist itself")
    assert not [name for name in tracked if not (unpacked / name).is_file()]


def test_an_sdist_can_run_its_own_tests(unpacked):
    """All of them are collected, and those run that read the sources beside them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "point_down or belong"]
    result = subprocess.run(
        command, cwd=unpacked, env=environment, capture_output=True, text=True, timeout=hang.SECONDS
    )
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-4000:]


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
        timeout=hang.SECONDS,
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


def test_no_extra_replaces_a_torch():
    """A torchvision insists on one exact torch. Whoever wants one is told how to get that of the torch in place."""
    extras = PROJECT["optional-dependencies"]
    wanted = requirement_names([line for lines in extras.values() for line in lines])
    assert not wanted & {"torch", "torchvision", "torchaudio", "timm"}
    assert _torchvision.how_to_install() == f"pip install torchvision torch=={metadata.version('torch')}"
    pair = [line for line in (ROOT / ".ci/constraints.txt").read_text().splitlines() if line.startswith("torch")]
    assert [line.partition("==")[0] for line in pair] == ["torch", "torchvision"]


def test_the_oldest_setuptools_that_is_asked_for_knows_what_the_recipe_says():
    """`license = "..."` needs 77, and its other form is deprecated from there on."""
    assert BUILD_SYSTEM["requires"][0] == "setuptools>=65"
    assert "license" in PROJECT["dynamic"] and "license" not in PROJECT


def test_nothing_names_a_machine():
    paths = re.compile("/" + r"(root|work|home)/\w|/" + r"opt/(?!nvidia)\w")
    suffixes = {".py", ".toml", ".md", ".txt", ".json", ".cfg", ".yml", ".in", ".cpp", ".cu", ".cuh", ".h", ".hpp", ""}
    folders = [ROOT / name for name in ("fused_resnet", "benchmarks", "tests", "csrc", ".ci")]
    sources = [path for folder in folders if folder.is_dir() for path in folder.rglob("*")]
    sources += [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a git worktree
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
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=hang.SECONDS)


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


@pytest.mark.parametrize("target", ["help", "bench", "test", "test-sanitized", "lint", "format", "info", "clean"])
def test_the_makefile_has_its_targets(checkout, target):
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    result = subprocess.run(["make", "-n", target], cwd=checkout, capture_output=True, text=True, timeout=hang.SECONDS)
    assert result.returncode == 0, result.stderr


def test_ci_run_is_executable_and_fails_when_a_step_fails():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and os.access(ROOT / ".ci/environment", os.X_OK)
    assert "set -euo pipefail" in script.read_text()
