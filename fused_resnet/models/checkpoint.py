"""Reading a weights file into named tensors, and named tensors into a model: whole and checked, or one clear error."""

import hashlib
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError

_HUB_HASH = re.compile(r"-([a-f0-9]{8,64})\.")
_SPELLED_OUT = 4  # how many keys an error message names


def hash_in_name(path: Path) -> str | None:
    """The first digits of the content's sha256 that torch hub's naming convention, `name-<digits>.ext`, puts there."""
    match = _HUB_HASH.search(path.name)
    return match.group(1) if match else None


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a local weights file, on the CPU, by parameter name.

    A `.safetensors` file is read with the `safetensors` package, every other one by `torch.load(weights_only=True)`.
    A checkpoint that wraps them, {"state_dict": ...} or {"model": ...}, is opened, and the "module." that
    DistributedDataParallel puts before every name is taken off. A file named in torch hub's way (8 or more
    hexadecimal digits after the last hyphen) is checked against its name before any of it is read.

    Raises:
        FileNotFoundError: no such file.
        ArgumentError: the hash differs, the file cannot be read, or it holds something else than named tensors.
        ImportError: a `.safetensors` file without the `safetensors` package.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"weights file {path} {problem}; expected a .pth, .pt or .safetensors file.")
    _check_hash(path)
    return _named_tensors(_read(path), path)


def _check_hash(path: Path) -> None:
    expected = hash_in_name(path)
    if expected is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise ArgumentError(
            f"weights file {path}: its name promises a sha256 that begins with {expected}, its content has "
            f"{digest}. Delete it and fetch it again; if those digits are no hash, rename the file."
        )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"reading {path} needs the safetensors package: pip install safetensors") from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in whichever layer of its format the damage lies
        hint = "it is damaged, or no weights file"
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            hint = "it may pickle more than tensors, which weights_only=True refuses; save model.state_dict() instead"
        raise ArgumentError(f"weights file {path} cannot be read: {hint}.") from error


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ArgumentError(f"weights file {path} holds {_kind(content)}; expected a state dict, {{name: tensor}}.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArgumentError(f"weights file {path} holds {_kind(value)} under {name!r}; expected {{name: tensor}}.")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def _kind(value: Any) -> str:
    return f"an empty {type(value).__name__}" if isinstance(value, Mapping) and not value else type(value).__name__


def load_state(model: nn.Module, state: Mapping[str, Tensor], label: str) -> None:
    """Copies `state` into `model`, all of it or nothing.

    Args:
        model: the module to fill.
        state: {name: tensor} of the model's own names and shapes; any dtype, cast to the parameter's. A missing
            BatchNorm `num_batches_tracked`, which old checkpoints lack, keeps its value.
        label: what to call the weights in an error.

    Raises:
        ArgumentError: a name is missing or unknown, or a shape differs; the first few of each are named.
    """
    own = model.state_dict()
    optional = "num_batches_tracked"
    problems = {
        "missing": [name for name in own if name not in state and not name.endswith(optional)],
        "unexpected": [name for name in state if name not in own and not name.endswith(optional)],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    found = [f"{len(names)} {kind}: {_first_of(names)}" for kind, names in problems.items() if names]
    if found:
        raise ArgumentError(f"{label} does not fit this {type(model).__name__}; " + "; ".join(found) + ".")
    # A plain dict: without the version that torch.save keeps, BatchNorm accepts a missing num_batches_tracked, and a
    # norm without that buffer drops it.
    model.load_state_dict({name: value for name, value in state.items() if name in own})


def _first_of(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SPELLED_OUT]) + (", ..." if len(names) > _SPELLED_OUT else "")
