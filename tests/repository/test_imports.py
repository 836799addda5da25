"""Imports point one way, down DESIGN's layers, and importing the package loads nothing that a user may lack."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, hang

PACKAGE = ROOT / "fused_resnet"

# Lowest first.  A module may import modules of its own layer or of a lower one.  The parts of a package that stand in
# one layer are free among themselves.
LAYERS = (
    ("errors", "_version", "_torchvision", "_C"),
    ("shapes",),
    ("tuning",),
    ("backends",),
    ("ops",),
    ("autograd",),
    ("blocks",),
    ("models",),
    ("frozen", "freeze", "explain", "info", "parity", "tuner"),
    ("",),  # fused_resnet/__init__.py, the public names
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def imported(path: Path) -> set[tuple[str, int]]:
    """The modules that a source imports anywhere in it, as absolute names, with the line."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {(f"{stem}.{alias.name}", node.lineno) for alias in node.names}
    return found


def test_every_module_has_a_layer():
    unknown = sorted({layer(module_name(path)) for path in SOURCES} - set(HEIGHT))
    assert not unknown, f"give {unknown} a place in LAYERS"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    own = layer(module_name(path))
    upward = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
        for name, line in sorted(imported(path))
        if name.partition(".")[0] == "fused_resnet" and HEIGHT.get(layer(name), len(LAYERS)) > HEIGHT[own]
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [("triton", ("backends.triton",)), ("torchvision", ()), ("numpy", ()), ("safetensors", ("models.checkpoint",))],
)
def test_optional_packages_are_imported_only_where_they_belong(module, allowed):
    allowed = tuple(f"fused_resnet.{name}" for name in allowed)
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line}"
        for path in SOURCES
        for name, line in sorted(imported(path))
        if name.partition(".")[0] == module and not module_name(path).startswith(allowed)
    ]
    assert not found, f"{module} is imported in {found}"


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=hang.SECONDS, cwd=PACKAGE.parent
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_loads_no_optional_package_and_touches_no_gpu():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_init = lambda *a: exit('asked for a GPU')\n"
        "import fused_resnet\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(loaded & {'triton', 'torchvision', 'numpy', 'safetensors', 'matplotlib', 'rich', 'onnxruntime'})\n"
        "print(torch.cuda.is_initialized())\n"
    )
    assert run(code).split("\n")[:2] == ["set()", "False"]


def test_works_where_triton_and_torchvision_cannot_be_imported():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('triton', 'torchvision', 'safetensors'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import torch, fused_resnet, fused_resnet.info\n"
        "model = fused_resnet.resnet18().eval()\n"
        "with torch.no_grad():\n"
        "    for subject in (model, fused_resnet.freeze(model)):\n"
        "        print(tuple(subject(torch.randn(1, 3, 40, 40)).shape))\n"
        "state = fused_resnet.info.report()['backends']['triton']\n"
        "print(state['on'], 'triton' in state['reason'])\n"
        "print(len(fused_resnet.explain(model, torch.randn(1, 3, 40, 40)).rows) > 0)\n"
    )
    assert run(code).split("\n")[:4] == ["(1, 1000)", "(1, 1000)", "False True", "True"]


def test_import_leaves_fork_usable():
    code = (
        "import multiprocessing, os, fused_resnet\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    import torch\n"
        "    fused_resnet.ops.global_avg_pool(torch.ones(1, 1, 2, 2))\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    assert run(code).strip() == "0"
