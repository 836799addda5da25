"""Tuning on the GPU: a row a convolution, those first that lose the most to cuDNN, the tables beside the JSON."""

from __future__ import annotations

import datetime
import functools
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

import fused_resnet
from fused_resnet.shapes import ConvShape
from fused_resnet.tuner.measure import call_at, refusal, shapes_of, tune
from fused_resnet.tuning import Choice, forced, table_path
from fused_resnet.tuning.candidates import candidates
from fused_resnet.tuning.tables import write_table

from .rows import Row, Settings

OP = "conv_scale_shift_act"
DTYPE = "bfloat16"
MOST_COMPILERS = 12


def rows(settings: Settings) -> list[Row]:
    """One row for each convolution of each model at each batch, all at the end of a run."""
    shapes: dict[ConvShape, None] = {}
    for model in settings.models:
        for batch in settings.batches:
            shapes |= dict.fromkeys(shapes_of(model, batch, settings.size))
    return [
        Row(
            "tune",
            f"{DTYPE}/{shape.key()}",
            lambda _, s=shape: tuned(s, settings),
            60,
            ("machine", "sources"),
            later=2,
        )
        for shape in shapes
    ]


def by_loss(rows_: list[Row], measured: Iterable[dict[str, object]]) -> list[Row]:
    """The rows, those first whose layers were measured to lose the most time to cuDNN; the others keep their order."""
    lost = {row["shape"]: max(0.0, loss(row)) for row in measured if row["part"] == "layers" and "passes" in row}
    return sorted(rows_, key=lambda row: -lost.get(row.name.partition("/")[2], 0.0))


def loss(layer: dict[str, object]) -> float:
    """Milliseconds a model that the fastest of ours takes longer than cuDNN's bare convolution."""
    times = {label: entry.get("median_ms") for label, entry in layer["passes"].get("inference", {}).items()}
    ours = [ms for label, ms in times.items() if ms is not None and label not in ("cudnn", "eager channels_last")]
    if not ours or times.get("cudnn") is None:
        return 0.0
    return (min(ours) - times["cudnn"]) * max(layer["count"].values())


def tuned(shape: ConvShape, settings: Settings) -> dict[str, object]:
    """Time every candidate of one convolution, put the fastest into the table and copy the table beside the JSON."""
    reason = refusal()
    if reason is not None:
        raise RuntimeError(reason)
    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    with fused_resnet.use_backend("triton"):
        compile_ahead(shape, arch)
        best, microseconds = tune(shape, arch, DTYPE)
    tile = None if best.tile is None else best.tile.as_dict()
    entry = {"algorithm": best.algorithm, "tile": tile, "microseconds": round(microseconds, 2)}
    provenance = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "commit": settings.commit or f"fused_resnet {fused_resnet.__version__}",
    }
    write_table(OP, arch, {(DTYPE, shape.key()): entry | provenance})
    return {"shape": shape.key(), **entry, "table": keep_table(arch, Path(settings.folder))}


def keep_table(arch: int, folder: Path) -> str:
    """Copy the table of sm_`arch` to `folder`/tables/sm_`arch`/, since a lent machine keeps nothing; its name there."""
    source = table_path(OP, arch)
    target = folder / "tables" / source.parent.name / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return str(target.relative_to(folder))


@functools.cache
def compilers() -> ProcessPoolExecutor:
    """Processes with a CUDA context each, kept from row to row: starting them takes longer than most rows compile."""
    workers = min(MOST_COMPILERS, max(1, len(os.sched_getaffinity(0)) - 2))
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def compile_ahead(shape: ConvShape, arch: int) -> None:
    """Compile every candidate into Triton's cache in several processes: one after the other takes minutes a shape."""
    choices = [choice for choice in candidates(arch, DTYPE, shape) if choice.algorithm != "aten"]
    list(compilers().map(compile_one, [shape] * len(choices), choices, chunksize=4))


def compile_one(shape: ConvShape, choice: Choice) -> bool:
    """Run a candidate once; whether it ran.  A failure shows again, with its reason, when the candidate is timed."""
    with fused_resnet.use_backend("triton"), forced(choice):
        try:
            call_at(shape, torch.bfloat16, "cuda")()
            return True
        except Exception:
            return False
