"""Inference on the GPU: ours beside torchvision's, eager, replayed from CUDA graphs and compiled, in one measurement.

A comparison holds every row that its ratios need, timed interleaved; the compiled network has a comparison of its own,
since compiling takes minutes and a short stay on a GPU must not lose the rest to it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import fused_resnet
from fused_resnet.parity import check_model

from ..meters import timing
from ..meters.rows import cudnn_at_its_best, started, timed
from ..subjects import peers
from ..subjects.candidates import REDUCED_LIMIT, Network, Variant, checked, prepare
from ..subjects.photos import batch_of_photographs
from .rows import Row, Settings

BF16 = torch.bfloat16
AMP = Variant(ours=False, channels_last=True, amp=True)  # what the others are compared with
COMPILED = "torchvision channels_last bf16 compile max-autotune"
CALIBRATION_IMAGES = 8
ERROR_DTYPES = {"bfloat16": BF16, "float16": torch.float16, "tfloat32": torch.float32, "float32": torch.float32}


@dataclass(frozen=True)
class Candidate:
    """One row: a variant, and for ours the backend that its ops are asked to run on."""

    variant: Variant
    backend: str = "auto"

    def label(self, baseline: str) -> str:
        """The variant's label, with a backend that was asked for by name."""
        name = self.variant.label(baseline)
        return name if self.backend == "auto" else f"{name} [{self.backend}]"


def torchvision_candidates(settings: Settings) -> list[Candidate]:
    """torchvision in channels_last: autocast and pure bfloat16, each called and replayed from a CUDA graph."""
    eager = (AMP, replace(AMP, amp=False, dtype=BF16))
    return [Candidate(replace(variant, graph=graph)) for graph in graphs(settings) for variant in eager]


def our_candidates(settings: Settings) -> list[Candidate]:
    """Ours: live and frozen through `auto`, called and replayed; through a backend by name, replayed only."""
    live, frozen = Variant(True, channels_last=True, dtype=BF16), Variant(True, frozen=True, dtype=BF16)
    found = [Candidate(Variant(True, channels_last=True, amp=True, graph=graph)) for graph in graphs(settings)]
    for variant in (live, frozen):
        found += [Candidate(replace(variant, graph=graph)) for graph in graphs(settings)]
        replayed = replace(variant, graph=graphs(settings)[-1])
        found += [Candidate(replayed, name) for name in settings.available(settings.networks)]
    return found


def graphs(settings: Settings) -> tuple[bool, ...]:
    """Called, and replayed from a CUDA graph where there are such."""
    return (False, True) if settings.device == "cuda" else (False,)


@functools.lru_cache(maxsize=2)
def network_of(model: str, size: int) -> Network:
    """A network whose batch norms hold the statistics of photographs: its logits mean something."""
    network = Network(model)
    network.calibrate(batch_of_photographs(CALIBRATION_IMAGES, size, seed=1))
    return network


def prepared(candidate: Candidate, network: Network, images: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """The candidate's forward pass under its backend, which the call asks for again each time unless it is replayed."""
    with fused_resnet.use_backend(candidate.backend):
        call = prepare(candidate.variant, network, images, device)
    if candidate.variant.graph or candidate.backend == "auto":
        return call

    def under_backend() -> Tensor:
        with fused_resnet.use_backend(candidate.backend):
            return call()

    return under_backend


def compiled(network: Network, images: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """torchvision's network in bfloat16, channels_last, max-autotune with freezing."""
    return peers.compiled(network.baseline().to(BF16), images.to(BF16), device, torch.get_num_threads())


def comparison(
    model: str, batch: int, settings: Settings, candidates: list[Candidate], compile_too: bool
) -> dict[str, object]:
    """Time the candidates on one batch, interleaved, each with the error of its logits against float64."""
    device, network = torch.device(settings.device), network_of(model, settings.size)
    images = batch_of_photographs(batch, settings.size)
    makers = {
        candidate.label(network.baseline_name): (
            "ours" if candidate.variant.ours else "baseline",
            lambda c=candidate: prepared(c, network, images, device),
        )
        for candidate in candidates
    }
    if compile_too:
        makers[COMPILED] = ("peer", lambda: compiled(network, images, device))
    rows, calls = [], {}
    with cudnn_at_its_best():
        gold = network.gold(images, device)
        release(device)
        for label, (kind, make) in makers.items():
            row = {"label": label, "kind": kind, "status": "ok", "limit": REDUCED_LIMIT}
            rows.append(row)
            call = started(row, lambda row=row, make=make: checked(row, make(), gold))
            if call is not None:
                calls[label] = call
            release(device)
        result = timed(rows, calls, batch, device, seconds=settings.seconds, rounds=settings.rounds)
    return {"model": model, "size": settings.size} | result


def release(device: torch.device) -> None:
    """Hand cached memory back: a graph's pool cannot use it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def rows(settings: Settings) -> list[Row]:
    """The first model's comparisons, its errors and its first compiled one; then the rest."""
    both, found = torchvision_candidates(settings) + our_candidates(settings), []
    few = [c for c in both if c.variant.graph == graphs(settings)[-1] or c.variant == AMP]
    for position, model in enumerate(settings.models):
        behind = 2 if position else 0
        for batch in settings.batches:
            found.append(_row(model, batch, settings, both, False, 75 if batch == settings.batches[0] else 30, behind))
        for name in ERROR_DTYPES:
            errors = lambda _, m=model, d=name: stage_errors(m, d, settings)  # noqa: E731
            rank = behind or (1 if name == "bfloat16" else 2)
            found.append(Row("inference", f"{model}/errors/{name}", errors, 30, ("machine", "sources"), rank))
        for batch in settings.batches if settings.compile else ():
            first = batch == settings.batches[0]
            found.append(_row(model, batch, settings, few, True, 150, behind or (1 if first else 2)))
    return found


def baseline_rows(settings: Settings) -> list[Row]:
    """torchvision's rows by themselves, the compiled ones behind the others."""
    plain, found = torchvision_candidates(settings), []
    for position, model in enumerate(settings.models):
        found += [_row(model, batch, settings, plain, False, 15, part="baselines") for batch in settings.batches]
        for batch in settings.batches if settings.compile else ():
            found.append(_row(model, batch, settings, [], True, 120, 2 if position else 1, "baselines"))
    return found


def _row(
    model: str,
    batch: int,
    settings: Settings,
    candidates: list[Candidate],
    compile_too: bool,
    expected_s: float,
    later: int = 0,
    part: str = "inference",
) -> Row:
    name = f"{model}/b{batch}{'/compile' if compile_too else ''}"
    return Row(
        part,
        name if part == "inference" else f"inference/{name}",
        lambda _: comparison(model, batch, settings, candidates, compile_too),
        expected_s,
        ("machine", "sources") if part == "inference" else ("machine",),
        later,
    )


@contextlib.contextmanager
def precision(dtype_name: str) -> Iterator[None]:
    """tf32 is forbidden, unless it is what was asked for."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = dtype_name == "tfloat32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def stage_errors(model: str, dtype_name: str, settings: Settings) -> dict[str, object]:
    """`fused_resnet.parity` of a model in one dtype, live and frozen, through `auto` and each backend by name."""
    reports, dtype = [], ERROR_DTYPES[dtype_name]
    for backend in ("auto", *settings.networks_in(dtype_name)):
        for frozen in (False, True):
            what = {"dtype": dtype_name, "backend": backend, "frozen": frozen}
            try:
                with precision(dtype_name):
                    report = check_model(model, settings.device, dtype, backend, None, 2, settings.size, frozen)
                reports.append(report.as_dict() | what)
            except Exception as error:  # one combination that cannot run must not cost the others
                reports.append({**what, "error": timing.describe(error)})
    return {"model": model, "reports": reports}
