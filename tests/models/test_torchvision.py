"""torchvision is imported for comparison only, also beside a torch that its extension was not built for."""

import subprocess
import sys

import pytest

from fused_resnet import _torchvision
from tests.support.twins import ABSENT, torchvision


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.skipif(torchvision is None, reason=ABSENT)
def test_imports_and_imports_again():
    run(
        "from fused_resnet._torchvision import import_torchvision as get\n"
        "assert get() is get()\n"
        "import torchvision\n"
        "assert torchvision is get() and torchvision.models.resnet18 and torchvision.ops.FrozenBatchNorm2d"
    )


def test_absent():
    run(
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "from fused_resnet._torchvision import import_torchvision\n"
        "import fused_resnet\n"
        "assert import_torchvision() is None\n"
        "assert fused_resnet.resnet18().fc.out_features == 1000"
    )


@pytest.mark.parametrize("error", [ImportError("a missing library"), RuntimeError("another failure")])
def test_a_broken_installation_is_not_absent(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr(_torchvision.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(_torchvision.importlib, "import_module", fail)
    with pytest.raises(type(error), match=str(error)):
        _torchvision.import_torchvision()
