"""A model of this package against torchvision's, stage by stage."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .. import models
from .._torchvision import import_torchvision
from ..explain import explain
from ..freeze import freeze
from ..ops import use_backend
from .report import Report
from .rounding import sampled
from .rule import compare
from .stages import frozen_stages, randomize, stage_outputs, stages_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
REFERENCE = "its own reference backend"
RUNS = 6  # maps have many elements to tell a spread from
# A random network takes its statistics from the images: of fewer values a channel than this, they are none.
VALUES_A_CHANNEL = 4


def check_model(
    name: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    weights: str | None = None,
    batch: int = 2,
    size: int | None = None,
    frozen: bool = False,
    seed: int = 0,
    require_torchvision: bool = False,
) -> Report:
    """Compare the model that builder `name` makes with torchvision's, stage by stage.

    Args:
        name: a builder of `fused_resnet.models`.
        dtype: float16, bfloat16 or float32; both models run in it.
        backend: for ours; as `use_backend` takes it.
        weights: as the builder takes it; None for random parameters and statistics.
        batch, size: the image batch is (batch, 3, size, size), normally distributed; None is 224, for CIFAR models 32.
        frozen: compare `fused_resnet.freeze(model)` instead of the live model.
        seed: of images, parameters and disturbances.
        require_torchvision: refuse to hold ours against this package's reference where torchvision, or this model in
            it, is missing.

    Raises:
        ValueError, BackendError: an argument names nothing that is there, or nothing could be concluded; the message
            says what is, or why.
    """
    size = _require_possible(name, device, dtype, weights, batch, size)
    ours, image = _model_and_image(name, weights, (batch, 3, size, size), seed)
    image, ours = image.to(device, dtype), ours.to(device, dtype)
    baseline, baseline_name, substitute = _baseline(name, ours)
    if substitute is not None and require_torchvision:
        raise ValueError(f"{name} cannot be held against torchvision's: {substitute}")
    return check_modules(
        ours, baseline, image, backend, frozen, seed, name=name, baseline_name=baseline_name, substitute=substitute
    )


def check_modules(
    ours: nn.Module,
    baseline: nn.Module,
    image: Tensor,
    backend: str = "auto",
    frozen: bool = False,
    seed: int = 0,
    runs: int = RUNS,
    name: str = "model",
    baseline_name: str = "the baseline given",
    substitute: str | None = None,
) -> Report:
    """Compare two residual networks of the same parameters, both in eval mode and in the image's dtype.

    Args:
        ours: a network of this package; `baseline`: the one it is held against, which is copied.
        image: (N, C, H, W), float16, bfloat16 or float32.
        runs: of the baseline, with its roundings disturbed.
        name, baseline_name, substitute: for the report.

    Raises:
        ValueError: nothing could be concluded: the two are the same object or the same computation, have no
            parameters, there is no pixel, or the baseline is not finite where float64 is.
        BackendError: as `use_backend`.
    """
    with use_backend(backend):  # raises where there is no such backend, before anything runs
        _require_two_models(ours, baseline, backend, baseline_name)
    if not image.numel():
        raise ValueError(f"an empty image proves nothing, got shape {tuple(image.shape)}")
    # in the layout that ours computes in: torch's kernels for another one add up in another order, with another error
    layout = {"memory_format": torch.channels_last}
    baseline = copy.deepcopy(baseline).to(image.device, image.dtype, **layout)
    with use_backend("reference"):
        disturbed = list(sampled(lambda: stage_outputs(baseline, image.contiguous(**layout)), runs, seed))
        exact = stage_outputs(baseline.double(), image.double())
    subject = freeze(ours) if frozen else ours
    stages = frozen_stages(subject, ours) if frozen else stages_of(ours)
    with use_backend(backend), torch.no_grad():
        output = stage_outputs(subject, image, stages)
        taken = [f"{row.path} ({row.backend})" for row in explain(subject, image).rows]
    rows = [compare(stage, output[stage], exact[stage], [run[stage] for run in disturbed]) for stage in exact]
    return Report(
        name,
        str(image.device),
        str(image.dtype).removeprefix("torch."),
        backend,
        frozen,
        baseline_name,
        substitute,
        tuple(image.shape),
        seed,
        runs,
        {path: taken.count(path) for path in dict.fromkeys(taken)},
        rows,
    )


def _require_possible(
    name: str, device: str, dtype: torch.dtype, weights: str | None, batch: int, size: int | None
) -> int:
    """The size of the images, once everything that was asked for is there."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16 or float32, which float64 can judge, got {dtype}")
    if name not in (*models.TORCHVISION_MODELS, *models.CIFAR_MODELS):
        known = ", ".join((*models.TORCHVISION_MODELS, *models.CIFAR_MODELS))
        raise ValueError(f"unknown model {name!r}: expected one of {known}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device here")
    is_cifar = name in models.CIFAR_MODELS
    size = (32 if is_cifar else 224) if size is None else size
    if batch < 1 or size < 1:
        raise ValueError(f"batch and size must be at least 1, got {batch} and {size}: an empty image proves nothing")
    reduction = 4 if is_cifar else 32
    extent = -(-size // reduction)
    values = batch * extent * extent
    if weights is None and values < VALUES_A_CHANNEL:
        raise ValueError(
            f"{batch} image{'s' if batch > 1 else ''} of {size} x {size} leave {name}'s last stage {values} value"
            f"{'s' if values > 1 else ''} a channel, and a random network's norms take their statistics from them:"
            f" at least {VALUES_A_CHANNEL} are needed; ask for a larger size or batch, or name weights"
        )
    return size


def _require_two_models(ours: nn.Module, baseline: nn.Module, backend: str, baseline_name: str) -> None:
    if ours is baseline:
        raise ValueError("a model is compared with itself, which proves nothing")
    if next(ours.parameters(), None) is None:
        raise ValueError(f"{type(ours).__name__} has no parameters: there is nothing to compare")
    if backend == "reference" and baseline_name == REFERENCE:
        raise ValueError("the backend 'reference' would be compared with itself, which proves nothing")


def _baseline(name: str, ours: nn.Module) -> tuple[nn.Module, str, str | None]:
    """The model to be held against, with `ours`' parameters; its name, and why it is not torchvision's."""
    torchvision = import_torchvision()
    if torchvision is None or name not in models.TORCHVISION_MODELS:
        absent = "it is not installed" if torchvision is None else f"it has no {name}"
        return copy.deepcopy(ours), REFERENCE, absent
    model = getattr(torchvision.models, name)()
    model.load_state_dict(ours.state_dict())
    return model.eval(), f"torchvision {torchvision.__version__}", None


def _model_and_image(name: str, weights: str | None, size: tuple[int, ...], seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    image = torch.randn(size)
    if weights is not None:
        return getattr(models, name)(weights=weights).eval(), image
    model = getattr(models, name)().eval()
    randomize(model, image, seed)
    return model, image
