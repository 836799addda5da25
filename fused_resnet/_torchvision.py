"""torchvision for comparison, also where only its Python half can be imported.

torchvision's registry wheel carries a CUDA extension. Beside a CPU build of torch that extension does not load, the
schemas it would have defined are missing, and `import torchvision` fails although the models need none of them.

No extra asks for it: a torchvision is made for one exact torch, so that asking for one may replace the torch that is
there, a CPU build by a CUDA build. `how_to_install` names both to pip, which then keeps the torch.
"""

import importlib
import importlib.util
from importlib import metadata
from types import ModuleType

import torch

# A torch.library.Library takes its definitions back when it is collected.
_schemas: torch.library.Library | None = None


def import_torchvision() -> ModuleType | None:
    """The torchvision package, or None when it is not installed.

    Where its C++ operators cannot be loaded, the schemas that its import asks for (`nms`, `qnms`) are defined, without
    an implementation, so that models and feature extraction work; calling one of those operators raises.

    Raises:
        RuntimeError, ImportError: torchvision is installed and cannot be imported for another reason.
    """
    global _schemas
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _schemas is not None or "torchvision::nms" not in str(error):
            raise
    _schemas = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")


def how_to_install() -> str:
    """The command that installs the torchvision of the torch that is here, and leaves that torch as it is."""
    return f"pip install torchvision torch=={metadata.version('torch')}"
