"""What a builder's `weights=` stands for: torchvision's published files, by enum member or name, or a local file.

Nothing here imports torchvision.
"""

import enum
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlparse

import torch
from torch import nn

from ..errors import ArgumentError
from .checkpoint import hash_in_name, load_state, read_state_dict

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

HOST = "https://download.pytorch.org/models/"
FILE_SUFFIXES = (".pth", ".pt", ".tar", ".safetensors")


@dataclass(frozen=True)
class Published:
    """torchvision's published weights of one architecture: its enum's name and, oldest first, {member: file name}."""

    enum: str
    files: dict[str, str]
    num_classes: int = 1000

    @property
    def default(self) -> str:
        """The member that torchvision's DEFAULT stands for: the newest."""
        return list(self.files)[-1]


def _published(enum_name: str, *files: str) -> Published:
    return Published(enum_name, {f"IMAGENET1K_V{version}": file for version, file in enumerate(files, start=1)})


# torchvision 0.28, torchvision/models/resnet.py; tests/models/test_weights.py compares the two where that is installed.
PUBLISHED: dict[str, Published] = {
    "resnet18": _published("ResNet18_Weights", "resnet18-f37072fd.pth"),
    "resnet34": _published("ResNet34_Weights", "resnet34-b627a593.pth"),
    "resnet50": _published("ResNet50_Weights", "resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"),
    "resnet101": _published("ResNet101_Weights", "resnet101-63fe2227.pth", "resnet101-cd907fc2.pth"),
    "resnet152": _published("ResNet152_Weights", "resnet152-394f9c45.pth", "resnet152-f82ba261.pth"),
    "resnext50_32x4d": _published(
        "ResNeXt50_32X4D_Weights", "resnext50_32x4d-7cdf4587.pth", "resnext50_32x4d-1a0047aa.pth"
    ),
    "resnext101_32x8d": _published(
        "ResNeXt101_32X8D_Weights", "resnext101_32x8d-8ba56ff5.pth", "resnext101_32x8d-110c445d.pth"
    ),
    "resnext101_64x4d": _published("ResNeXt101_64X4D_Weights", "resnext101_64x4d-173b62eb.pth"),
    "wide_resnet50_2": _published(
        "Wide_ResNet50_2_Weights", "wide_resnet50_2-95faca4d.pth", "wide_resnet50_2-9ba9bcbe.pth"
    ),
    "wide_resnet101_2": _published(
        "Wide_ResNet101_2_Weights", "wide_resnet101_2-32ee1156.pth", "wide_resnet101_2-d733dc28.pth"
    ),
}


@dataclass(frozen=True)
class Source:
    """Resolved weights: a url to download or a local path, and the number of classes where it is known beforehand."""

    url: str | None = None
    path: Path | None = None
    num_classes: int | None = None

    @property
    def label(self) -> str:
        return str(self.path if self.url is None else self.url)


def resolve_weights(arch: str, weights: Any) -> Source:
    """What `weights=` stands for, without reading or downloading anything.

    Args:
        arch: a builder's name, one of PUBLISHED's keys.
        weights: a member of torchvision's enum of this architecture; any object with `url` and `meta` (whose
            "categories", where present, give the number of classes); a member's name ("IMAGENET1K_V1", "DEFAULT",
            "ResNet50_Weights.DEFAULT"); or the path of a local file (str or os.PathLike).

    Raises:
        ValueError: a name that is no member and no file's name.
        TypeError: an enum member of another architecture, or an object of another kind.
    """
    published = PUBLISHED[arch]
    if isinstance(weights, str):
        return _resolve_name(arch, weights)
    if isinstance(weights, os.PathLike):
        return Source(path=Path(weights))
    if isinstance(weights, enum.Enum) and type(weights).__name__ != published.enum:
        raise TypeError(
            f"Invalid Weight class provided; expected {published.enum} but received {type(weights).__name__}."
        )
    if isinstance(getattr(weights, "url", None), str) and isinstance(getattr(weights, "meta", None), Mapping):
        categories = weights.meta.get("categories")
        return Source(url=weights.url, num_classes=None if categories is None else len(categories))
    raise TypeError(f"{arch}: weights must be {_choices(arch)}; got {type(weights).__name__} {weights!r}.")


def _resolve_name(arch: str, name: str) -> Source:
    published = PUBLISHED[arch]
    member = name.removeprefix(f"{published.enum}.")
    if member == "DEFAULT":
        member = published.default
    if member in published.files:
        return Source(url=HOST + published.files[member], num_classes=published.num_classes)
    path = Path(name).expanduser()
    if "://" not in name and (path.suffix in FILE_SUFFIXES or path.exists()):
        return Source(path=path)
    raise ValueError(f"{arch}: unknown weights {name!r}; expected {_choices(arch)}.")


def _names(published: Published) -> str:
    return ", ".join(repr(name) for name in (*published.files, "DEFAULT"))


def _choices(arch: str) -> str:
    published = PUBLISHED[arch]
    return (
        f"one of {_names(published)}, a member of torchvision's {published.enum}, "
        "or a local .pth, .pt or .safetensors file"
    )


def fix(kwargs: dict[str, Any], **values: Any) -> dict[str, Any]:
    """`kwargs` with `values`; a ValueError, in torchvision's words, where an argument was given and disagrees."""
    for name, value in values.items():
        if kwargs.get(name, value) != value:
            raise ValueError(f"The parameter '{name}' expected value {value} but got {kwargs[name]} instead.")
    return {**kwargs, **values}


def build_with_weights(
    arch: str, weights: Any, progress: bool, kwargs: dict[str, Any], construct: Callable[..., nn.Module]
) -> nn.Module:
    """`construct(**kwargs)` holding `weights`, or an error and no model.

    The number of classes follows the weights: the enum's categories, or the rows of `fc.weight` in a local file.

    Args:
        arch: the builder's name.
        weights: what `resolve_weights` takes.
        progress: whether a download shows its progress on stderr.
        kwargs: the model's arguments; `num_classes`, where given, must agree with the weights.
        construct: makes the model from `kwargs`.

    Raises:
        ValueError, TypeError: as `resolve_weights`; or `num_classes` disagrees.
        ArgumentError: as `read_state_dict` and `load_state`.
        FileNotFoundError, OSError: a local file that is not there, a download that failed.
    """
    source = resolve_weights(arch, weights)
    num_classes, state = source.num_classes, None
    if source.path is not None:
        state = read_state_dict(source.path)
        if "fc.weight" in state and state["fc.weight"].dim() == 2:
            num_classes = state["fc.weight"].shape[0]
    if num_classes is not None:
        kwargs = fix(kwargs, num_classes=num_classes)
    model = construct(**kwargs)
    if state is None:
        state = read_state_dict(download(source.url, progress))
    load_state(model, state, f"{arch}: {source.label}")
    return model


def download(url: str, progress: bool = True) -> Path:
    """The local copy of `url` in torch hub's cache (`$TORCH_HOME/hub/checkpoints`), downloaded where it is not there.

    The cache is the one torchvision uses. A download whose sha256 does not begin with the digits in its file name is
    thrown away; a copy that was there already is checked when it is read.

    Raises:
        ArgumentError: the hash differs.
        OSError: the download failed.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    cached = folder / Path(urlparse(url).path).name
    if cached.exists():
        return cached
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(cached), hash_in_name(cached), progress=progress)
    except OSError as error:
        raise OSError(
            f"{url} could not be downloaded ({error}); fetch it by other means and pass its path as weights=, "
            f"or put it at {cached}."
        ) from error
    except RuntimeError as error:  # how torch hub says that the hash differs
        raise ArgumentError(
            f"{url}: {error}; the download was thrown away. Try again, or pass a local file."
        ) from error
    return cached


_BUILDER_DOC = """

    Args:
        weights: None (random initialisation); a member of torchvision's {enum}, or its name,
            {names}; or a local .pth, .pt or .safetensors file.
        progress: whether a download shows its progress on stderr.
        **kwargs: ResNet's num_classes, zero_init_residual, groups, width_per_group, replace_stride_with_dilation and
            norm_layer.

    Raises:
        ValueError, TypeError, OSError: weights that do not exist, cannot be had, are damaged or do not fit.
"""


def torchvision_builder(builder: Builder) -> Builder:
    """Completes `builder(*, weights=None, progress=True, **kwargs)`: its docstring, and torchvision's old arguments.

    As in torchvision, `weights` and `progress` may be positional, and a bool in the place of `weights`, or as
    `pretrained=`, means the oldest published weights (True) or none (False). Each of these warns.
    """
    arch = builder.__name__
    names = tuple(signature(builder).parameters)[:2]  # weights, progress

    @wraps(builder)
    def wrapper(*args: Any, **kwargs: Any) -> nn.Module:
        if len(args) > len(names):
            raise TypeError(f"{arch}() takes at most {len(names)} positional arguments, {names}; got {len(args)}.")
        for name, value in zip(names, args, strict=False):
            if name in kwargs:
                raise TypeError(f"{arch}() got multiple values for argument {name!r}.")
            warnings.warn(f"{arch}: pass {name!r} as a keyword, positional is deprecated.", stacklevel=2)
            kwargs[name] = value
        if "pretrained" in kwargs:
            if "weights" in kwargs:
                raise TypeError(f"{arch}() got both 'weights' and its deprecated form 'pretrained'.")
            kwargs["weights"] = bool(kwargs.pop("pretrained"))
        if isinstance(kwargs.get("weights"), bool):
            kwargs["weights"] = next(iter(PUBLISHED[arch].files)) if kwargs["weights"] else None
            warnings.warn(
                f"{arch}: 'pretrained', or a bool as 'weights', is deprecated; this is weights={kwargs['weights']!r}. "
                "weights='DEFAULT' is the newest.",
                stacklevel=2,
            )
        return builder(**kwargs)

    published = PUBLISHED[arch]
    wrapper.__doc__ = (builder.__doc__ or "") + _BUILDER_DOC.format(enum=published.enum, names=_names(published))
    return cast(Builder, wrapper)
