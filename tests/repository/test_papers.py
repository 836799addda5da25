"""What stands at the door: the example, torch.hub's entry points, the versions, the types."""

from __future__ import annotations

import os
import pickle
import re
import runpy
import subprocess
import sys

import pytest
import torch

import fused_resnet
from tests.support import ROOT


def test_the_example_runs():
    command = [sys.executable, "examples/first_steps.py", "--device", "cpu", "--size", "40"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"layer1\.0 .* (fused|unfused)", done.stdout) and "step 1: loss" in done.stdout
    assert float(re.search(r"differ by (\S+) of", done.stdout)[1]) < 1e-3


def test_torch_hub_lists_and_builds_every_model():
    builders = {*fused_resnet.models.TORCHVISION_MODELS, *fused_resnet.models.CIFAR_MODELS}
    listed = runpy.run_path(str(ROOT / "hubconf.py"))
    assert {name for name, entry in listed.items() if callable(entry)} == builders
    model = torch.hub.load(str(ROOT), "cifar_resnet20", source="local", num_classes=3)
    assert type(model) is fused_resnet.CifarResNet and model.fc.out_features == 3


def test_one_version_everywhere():
    version = fused_resnet.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version


def test_every_public_name_is_exported_in_words():
    """A type checker reads `__all__` and does not run it."""
    text = (ROOT / "fused_resnet" / "__init__.py").read_text()
    assert "import *" not in text
    assert set(re.findall(r'^    "(\w+)",$', text, re.M)) == set(fused_resnet.__all__)
    assert (ROOT / "fused_resnet" / "py.typed").is_file()


OLD_PLACES = {
    "fused_resnet.blocks": "BasicBlock Bottleneck OptionAShortcut",
    "fused_resnet.frozen": "FrozenBlock FrozenConv FrozenStem SafeRange",
    "fused_resnet.freeze": "Frozen FrozenNetwork",
    "fused_resnet.models.resnet": "ResNet",
    "fused_resnet.models.cifar": "CifarResNet",
    "fused_resnet.ops.dispatch": "use_backend",
    "fused_resnet.errors": "ArgumentError BackendError",
    "fused_resnet.tuning.config": "Choice TileConfig",
}


@pytest.mark.parametrize("module", OLD_PLACES)
def test_what_was_pickled_before_files_moved_is_found(module):
    for name in OLD_PLACES[module].split():
        found = pickle.loads(f"c{module}\n{name}\n.".encode())
        assert found.__name__ == name and pickle.loads(pickle.dumps(found)) is found
