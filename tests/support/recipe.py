"""setup.py as a module: its functions, with nothing set up."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import pytest
import setuptools

from tests.support import ROOT

SETUP = ROOT / "setup.py"
ARCHS = "FUSED_RESNET_CUDA_ARCHS"


@functools.cache
def recipe() -> ModuleType:
    """The module, as where every warning is an error."""
    spec = importlib.util.spec_from_file_location("recipe", SETUP)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: None)
        patch.setenv(ARCHS, "none")
        patch.setenv("FUSED_RESNET_WERROR", "1")
        spec.loader.exec_module(module)
    return module
