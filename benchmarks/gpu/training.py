"""Training steps on the GPU: ours beside torchvision's, their errors against float64, and whether they repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..meters import timing
from ..meters.rows import cudnn_at_its_best, started, timed
from ..subjects.candidates import Network
from ..subjects.photos import batch_of_photographs
from ..subjects.steps import Recipe, Step, gold, parity, peak_memory, prepare
from .inference import graphs, network_of, precision, release
from .rows import Row, Settings

BF16 = torch.bfloat16
ERROR_DTYPES = {"bfloat16": BF16, "float16": torch.float16, "tfloat32": None, "float32": None}


@dataclass(frozen=True)
class Candidate:
    """One row: a recipe, the backend of ours, and whether the model itself is bfloat16 in the place of autocast."""

    recipe: Recipe
    backend: str = "auto"
    pure: bool = False

    @property
    def kind(self) -> str:
        return "peer" if self.recipe.compile_mode else "ours" if self.recipe.ours else "baseline"

    def label(self, baseline: str) -> str:
        name = self.recipe.label(baseline) + (" bf16" if self.pure else "")
        return name if self.backend == "auto" else f"{name} [{self.backend}]"


def torchvision_candidates(settings: Settings) -> list[Candidate]:
    """torchvision in channels_last: autocast, called and replayed; pure bfloat16."""
    found = [Candidate(Recipe(False, BF16, graph=graph)) for graph in graphs(settings)]
    return [*found, Candidate(Recipe(False, None), pure=True)]


def our_candidates(settings: Settings) -> list[Candidate]:
    """Ours under autocast, through `auto` and through each backend by name, called and replayed."""
    backends = ("auto", *settings.available(settings.networks))
    return [Candidate(Recipe(True, BF16, graph=graph), name) for name in backends for graph in graphs(settings)]


COMPILED = Candidate(Recipe(False, BF16, compile_mode="max-autotune"))


def batch_of(settings: Settings, batch: int) -> tuple[Tensor, Tensor]:
    """Photographs and labels."""
    labels = torch.randint(1000, (batch,), generator=torch.Generator().manual_seed(0))
    return batch_of_photographs(batch, settings.size), labels


def prepared(candidate: Candidate, network: Network, images: Tensor, labels: Tensor, device: torch.device) -> Step:
    """The candidate's step, compiled or captured where it says so."""
    if not candidate.pure:
        return prepare(candidate.recipe, network, images, labels, device, candidate.backend)
    model = network.baseline().train().to(device=device, dtype=BF16, memory_format=torch.channels_last)
    inputs = images.to(device, BF16).contiguous(memory_format=torch.channels_last)
    return Step(model, inputs, labels.to(device), None, "auto")


def warmed_up(row: dict[str, object], step: Step, device: torch.device) -> Step:
    """`step`, warmed up; the row gets whether its loss is finite and its peak of memory."""
    for _ in range(2):
        loss = step()
    row["loss_is_finite"] = bool(torch.isfinite(loss))
    row |= peak_memory(step, device)
    return step


def comparison(model: str, settings: Settings, candidates: list[Candidate]) -> dict[str, object]:
    """Time the candidates' steps on one batch, interleaved, with the peak of memory of those that are called."""
    device, network = torch.device(settings.device), network_of(model, settings.size)
    images, labels = batch_of(settings, settings.train_batch)
    rows, steps = [], {}
    with cudnn_at_its_best():
        torch.compiler.reset()
        for candidate in candidates:
            row = {"label": candidate.label(network.baseline_name), "kind": candidate.kind, "status": "ok"}
            rows.append(row)

            def make(row=row, candidate=candidate) -> Step:
                return warmed_up(row, prepared(candidate, network, images, labels, device), device)

            step = started(row, make)
            if step is not None:
                steps[row["label"]] = step
            release(device)
        result = timed(rows, steps, len(images), device, seconds=settings.seconds, rounds=settings.rounds)
    return {"model": model, "size": settings.size} | result


def step_errors(model: str, dtype_name: str, settings: Settings) -> dict[str, object]:
    """The first step's loss and gradients against a float64 step: eager's and ours, in one dtype."""
    device, network = torch.device(settings.device), network_of(model, settings.size)
    images, labels = batch_of(settings, settings.error_batch)
    truth, amp = gold(network, images, labels, device), ERROR_DTYPES[dtype_name]
    candidates = [Candidate(Recipe(False, amp))]
    candidates += [Candidate(Recipe(True, amp), name) for name in ("auto", *settings.networks_in(dtype_name))]
    rows = []
    for candidate in candidates:
        row = {"label": candidate.label(network.baseline_name), "dtype": dtype_name, "status": "ok"}
        rows.append(row)
        try:
            with precision(dtype_name):
                row |= parity(prepared(candidate, network, images, labels, device), truth)
        except Exception as error:  # one combination that cannot run must not cost the others
            row["status"] = f"error: {timing.describe(error)}"
        release(device)
    for row in rows:
        row["eager_gradient_rms"] = rows[0].get("gradient_rms")
    return {"model": model, "batch": len(images), "size": settings.size, "rows": rows}


def state_after(step: Step) -> list[Tensor]:
    """The loss, gradients, weights and running statistics after one step from the initial weights, as copies."""
    step.restore()
    step.optimizer.state.clear()
    loss = step()
    gradients = [parameter.grad for parameter in step.model.parameters()]
    return [tensor.detach().clone() for tensor in (loss, *gradients, *step.model.state_dict().values())]


def repeats(model: str, backend: str, settings: Settings) -> dict[str, object]:
    """Whether a step from the same weights gives the same bits each time."""
    device, network = torch.device(settings.device), network_of(model, settings.size)
    images, labels = batch_of(settings, settings.error_batch)
    step = prepared(Candidate(Recipe(True, BF16), backend), network, images, labels, device)
    names = ["loss", *(f"gradient of {name}" for name, _ in step.model.named_parameters()), *step.model.state_dict()]
    first = state_after(step)
    for index in range(1, settings.repeats):
        same = [torch.equal(one, other) for one, other in zip(first, state_after(step), strict=True)]
        if not all(same):
            return {"steps": index + 1, "equal": False, "first_difference": names[same.index(False)]}
    return {"steps": settings.repeats, "equal": True, "first_difference": None}


def rows(settings: Settings) -> list[Row]:
    """The first model's comparison, its errors, repeats and compiled comparison; then the others'."""
    sources, found = ("machine", "sources"), []
    both = torchvision_candidates(settings) + our_candidates(settings)
    # Each graph holds the memory of a whole step: only what the ratios need stands beside the compiled one.
    graph = graphs(settings)[-1]
    ours = [one for one in both if one.recipe.ours and one.recipe.graph == graph and one.backend != "auto"]
    for position, model in enumerate(settings.models):
        name, behind = f"{model}/b{settings.train_batch}", 2 if position else 0

        def row(name: str, make: Callable[[], dict], expected_s: float, later: int) -> None:
            found.append(Row("training", name, lambda _: make(), expected_s, sources, later))

        row(name, lambda m=model: comparison(m, settings, both), 100, behind)
        for dtype_name in ERROR_DTYPES:
            rank = behind or (1 if dtype_name == "bfloat16" else 2)
            row(f"{model}/errors/{dtype_name}", lambda m=model, d=dtype_name: step_errors(m, d, settings), 30, rank)
        for backend in settings.available(settings.networks):
            row(f"{model}/repeat/{backend}", lambda m=model, b=backend: repeats(m, b, settings), 15, behind or 1)
        if settings.compile:
            compiled = lambda m=model: comparison(m, settings, [both[0], *ours, COMPILED])  # noqa: E731
            row(f"{name}/compile", compiled, 240, behind or 1)
    return found


def baseline_rows(settings: Settings) -> list[Row]:
    """torchvision's steps by themselves, the compiled ones behind the others."""
    plain, found = torchvision_candidates(settings), []
    for position, model in enumerate(settings.models):
        name = f"training/{model}/b{settings.train_batch}"
        found.append(Row("baselines", name, lambda _, m=model: comparison(m, settings, plain), 25))
        compiled = lambda _, m=model: comparison(m, settings, [COMPILED])  # noqa: E731
        if settings.compile:
            found.append(Row("baselines", f"{name}/compile", compiled, 200, later=2 if position else 1))
    return found
