"""Our model and torchvision's with the same parameters, settled as training settles them.

Random residual networks are badly conditioned: at its initialisation ResNet-152's activations reach 1e7, and
torchvision's own two memory layouts then disagree by more than `assert_close` allows. `settle` damps the last norm of
every block, as training does.
"""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.testing import assert_close

from fused_resnet import models
from fused_resnet._torchvision import how_to_install, import_torchvision

torchvision = import_torchvision()
ABSENT = f"torchvision, which is compared with, is not installed: {how_to_install()}"
FAMILIES = ("resnet18", "resnet50")  # one of each block
exactly = partial(assert_close, rtol=0, atol=0)


def settle(model: nn.Module) -> None:
    """Norms as a trained network has them: nothing at its initial value, the last norm of a block small."""
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            block, _, child = name.rpartition(".")
            last = child == ("bn3" if hasattr(model.get_submodule(block), "bn3") else "bn2")
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.weight.data.mul_(0.2 if last else 1.0)
            nn.init.normal_(norm.bias, std=0.1)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)


def twins(name: str, **kwargs) -> tuple[nn.Module, nn.Module]:
    """Ours and torchvision's, both in eval mode, with the same settled parameters."""
    theirs = getattr(torchvision.models, name)(**kwargs).eval()
    settle(theirs)
    with torch.device("meta"):
        ours = getattr(models, name)(**kwargs).eval()
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    return ours, theirs


def small_state() -> dict[str, torch.Tensor]:
    """The tensors of a ResNet-18 with two classes."""
    torch.manual_seed(1)
    model = models.resnet18(num_classes=2)
    nn.init.uniform_(model.bn1.running_mean)
    return model.state_dict()


def saved(content: object, path: Path, hashed: bool = False) -> Path:
    """`path` holding `content`, with torch hub's hash in its name if `hashed`."""
    torch.save(content, path)
    if hashed:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path = path.rename(path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}"))
    return path


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """`model` holds exactly these tensors under these names."""
    exactly(dict(model.state_dict()), dict(state))
