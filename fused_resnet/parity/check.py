"""A model of this package against torchvision's, stage by stage."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import models
from .._torchvision import import_torchvision
from ..explain import explain
from ..freeze import freeze
from ..ops import use_backend
from .errors import Row, compare, table

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "logits")


def randomize(model: nn.Module, image: Tensor, seed: int = 0) -> None:
    """Give `model`'s batch norms weights, biases and statistics as training would: nothing at its initial value.

    The statistics are those of one training-mode pass over `image`, so that activations keep their size through the
    depth of the network.  Parameters of other layers stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        with torch.no_grad():
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))
    training = model.training
    with torch.no_grad():
        model.train()(image)
    model.train(training)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _stages(model: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in model.named_children() if name in STAGES}


def _frozen_stages(frozen: nn.Module, source: nn.Module) -> dict[str, nn.Module]:
    """The parts of a frozen network whose outputs are those of `source`'s stem and stages."""
    stages, end = {"stem": frozen.body.stem}, 0
    for name, stage in _stages(source).items():
        end += len(stage)
        stages[name] = frozen.body.blocks[end - 1]
    return stages


def stage_outputs(model: nn.Module, image: Tensor, stages: dict[str, nn.Module] | None = None) -> dict[str, Tensor]:
    """The outputs of stem, layer1 to layer4 and the logits, those that `model` has.

    Read by hooks on the stages as wholes, which leave the blocks inside them on the path they would take.  `stages`
    names the modules where they are not `model`'s children of these names.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        return lambda module, arguments, output: outputs.__setitem__(name, output)

    stages = _stages(model) if stages is None else stages
    handles = [stage.register_forward_hook(keep(name)) for name, stage in stages.items()]
    if "stem" not in stages:
        handles.append(
            stages["layer1"].register_forward_pre_hook(
                lambda module, arguments: outputs.__setitem__("stem", arguments[0])
            )
        )
    try:
        with torch.no_grad():
            outputs["logits"] = model(image)
    finally:
        for handle in handles:
            handle.remove()
    return {name: outputs[name] for name in STAGES if name in outputs}


@dataclasses.dataclass(frozen=True)
class Report:
    """One comparison: what was compared with what, the paths that ours took and the rows."""

    model: str
    device: str
    dtype: str
    backend: str
    frozen: bool
    baseline: str
    paths: dict[str, int]
    rows: list[Row]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def __str__(self) -> str:
        paths = ", ".join(f"{count} {path}" for path, count in self.paths.items())
        failed = ", ".join(row.name for row in self.rows if not row.passed)
        lines = [
            f"fused_resnet.{self.model}{' frozen' if self.frozen else ''} against {self.baseline}:"
            f" {self.dtype} on {self.device}, backend {self.backend}",
            f"paths: {paths}",
            "errors against float64, relative to each output's RMS",
            table(self.rows),
            f"FAILED: {failed}" if failed else "passed",
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        rows = [dataclasses.asdict(row) | {"passed": row.passed} for row in self.rows]
        return dataclasses.asdict(self) | {"rows": rows, "passed": self.passed}


def _baseline(name: str, ours: nn.Module) -> tuple[nn.Module, str]:
    """The model to be held against, with `ours`' parameters, and its name."""
    torchvision = import_torchvision()
    if torchvision is None or name not in models.TORCHVISION_MODELS:
        return copy.deepcopy(ours), "its own reference backend"
    model = getattr(torchvision.models, name)()
    model.load_state_dict(ours.state_dict())
    return model.eval(), f"torchvision {torchvision.__version__}"


def _model_and_image(name: str, weights: str | None, size: tuple[int, ...], seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    image = torch.randn(size)
    if weights is not None:
        return getattr(models, name)(weights=weights).eval(), image
    model = getattr(models, name)().eval()
    randomize(model, image, seed)
    return model, image


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
) -> Report:
    """Compare the model that builder `name` makes with torchvision's, stage by stage.

    Args:
        name: a builder of `fused_resnet.models`.
        dtype: float16, bfloat16 or float32; both models run in it.
        backend: for ours; as `use_backend` takes it.
        weights: as the builder takes it; None for random parameters and statistics.
        batch, size: the image batch is (batch, 3, size, size), normally distributed; None is 224, for CIFAR models 32.
        frozen: compare `fused_resnet.freeze(model)` instead of the live model.

    Raises:
        ValueError, BackendError: an argument names nothing that is there; the message says what is.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype must be float16, bfloat16 or float32, which float64 can judge, got {dtype}")
    if name not in (*models.TORCHVISION_MODELS, *models.CIFAR_MODELS):
        known = ", ".join((*models.TORCHVISION_MODELS, *models.CIFAR_MODELS))
        raise ValueError(f"unknown model {name!r}: expected one of {known}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device here")
    if size is None:
        size = 32 if name in models.CIFAR_MODELS else 224
    if batch < 1 or size < 1:
        raise ValueError(f"batch and size must be at least 1, got {batch} and {size}: an empty image proves nothing")
    ours, image = _model_and_image(name, weights, (batch, 3, size, size), seed)
    image, ours = image.to(device, dtype), ours.to(device, dtype)
    baseline, baseline_name = _baseline(name, ours)
    # in the layout that ours computes in: torch's kernels for another one add up in another order, with another error
    layout = {"memory_format": torch.channels_last}
    baseline.to(device, dtype, **layout)
    with use_backend("reference"):
        expected = stage_outputs(baseline, image.contiguous(**layout))
        exact = stage_outputs(baseline.double(), image.double())
    subject = freeze(ours) if frozen else ours
    stages = _frozen_stages(subject, ours) if frozen else _stages(ours)
    with use_backend(backend), torch.no_grad():
        output = stage_outputs(subject, image, stages)
        taken = [f"{row.path} ({row.backend})" for row in explain(subject, image).rows]
    rows = [compare(stage, output[stage], expected[stage], exact[stage]) for stage in expected]
    dtype_name = str(dtype).removeprefix("torch.")
    paths = {path: taken.count(path) for path in dict.fromkeys(taken)}
    return Report(name, device, dtype_name, backend, frozen, baseline_name, paths, rows)
