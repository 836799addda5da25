"""Where files stand: what they compute names the folder, which step of it the file, and both stay small."""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support import ROOT

FILES_A_FOLDER, LINES_A_FILE, LINES_A_FUNCTION = 20, 320, 60
SOURCES = (".py", ".cu", ".cuh", ".cpp", ".hpp", ".h")
# What a folder of tests has its name from; those of None test no folder of sources.
TESTED = {
    "backends": "fused_resnet/backends",
    "benchmarks": "benchmarks",
    "commands": None,
    "device": None,
    "frozen": "fused_resnet/frozen",
    "kernels": "csrc/kernels",
    "models": "fused_resnet/models",
    "ops": "fused_resnet/ops",
    "repository": None,
    "support": None,
    "training": "fused_resnet/autograd",
}


def files() -> list[Path]:
    """What the repository holds, or what an sdist of it does."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        folders = ("benchmarks", "csrc", "examples", "fused_resnet", "tests")
        found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*")]
        found = [path for path in found if "__pycache__" not in path.parts and path.suffix != ".so"]
    else:
        found = list(map(Path, listed.stdout.splitlines()))
    return sorted(path for path in found if "results" not in path.parts and (ROOT / path).is_file())


FILES = files()
CODE = [path for path in FILES if path.suffix in SOURCES]


def test_no_folder_is_crowded():
    crowded = {str(folder): count for folder, count in Counter(path.parent for path in FILES).items()}
    assert len(crowded) > 40
    assert not {folder: count for folder, count in crowded.items() if count > FILES_A_FOLDER}


def test_no_file_is_long():
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in CODE}
    assert len(lines) > 300
    assert not {path: count for path, count in lines.items() if count > LINES_A_FILE}


def test_no_function_is_long():
    """Its signature does not count: a kernel's is as long as its launch asks for."""
    long = []
    for path in CODE:
        if path.suffix == ".py":
            for node in ast.walk(ast.parse((ROOT / path).read_text())):
                if isinstance(node, ast.FunctionDef) and node.end_lineno - node.body[0].lineno >= LINES_A_FUNCTION:
                    long.append(f"{path}:{node.lineno} {node.name}")
    assert not long


def test_no_name_repeats_its_folders():
    repeated = [path for path in CODE if path.stem.removeprefix("test_").startswith(f"{path.parent.name}_")]
    assert not repeated


def test_every_folder_of_python_is_a_package():
    folders = {path.parent for path in FILES if path.suffix == ".py" and path.parts[0] in ("benchmarks", "tests")}
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()]


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES if path.parts[0] == "tests"}), ids=str)
def test_tests_stand_where_their_sources_do(folder):
    parts = folder.parts[1:]
    if parts:
        assert parts[0] in TESTED, f"{folder}: name what it tests in TESTED"
        if TESTED[parts[0]] is not None:
            assert (ROOT / TESTED[parts[0]]).joinpath(*parts[1:]).is_dir()
