"""Bytes that autograd keeps between forward and backward: ours beside torchvision eager, on any device.

    python -m benchmarks.memory                         # single blocks in T, ResNet-50 and ResNet-18 in MB per image
    python -m benchmarks.memory --shapes --batch 256    # the same at a batch that no CPU would finish
    python -m benchmarks.memory --dtype bfloat16 --batch 4 --json memory.json

Counts every storage that is saved for the backward pass once; the input, parameters and buffers exist anyway and do not
count.  T is one map of the block's own width at its output's size; a bottleneck's output is 4T.
Exit status: 0; 1 when --check is given and a goal is missed; 2 when an argument cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import fused_resnet
from fused_resnet import BackendError

from .meters.traffic import is_map_of
from .record import environment, report
from .subjects.pairs import (
    CASES,
    DTYPES,
    BlockCase,
    add_meter_arguments,
    baseline_name,
    block_pair,
    checked_device,
    counting,
    images_of,
    lengths,
    model_pair,
)

MODEL_GOALS = {"resnet50": 0.55}  # of eager's bytes
COUNTED = "Each saved storage once, whole; the input, parameters and buffers do not count. maps: feature maps only."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_meter_arguments(arguments)
    return arguments


def storage_of(tensor: Tensor) -> int:
    """What tells storages apart while they are alive."""
    return tensor.untyped_storage()._cdata


def saved_by(module: nn.Module, x: Tensor, amp: torch.dtype | None = None) -> list[dict[str, object]]:
    """The storages that `module(x)` leaves behind for its backward pass, in the order they are saved.

    Each is {"bytes", "shape", "dtype", "map"} of the first tensor that was saved of it; "map" is True for feature maps.
    """
    is_map = is_map_of(x.shape[0], [module])
    mine = [x, *module.parameters(), *module.buffers()]
    known = {storage_of(tensor) for tensor in mine}
    kept: list[Tensor] = []  # alive until everything is counted, or an address would be given out twice
    found = []

    def pack(tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in known:
            known.add(storage_of(tensor))
            kept.append(tensor)
            size = tensor.untyped_storage().nbytes()
            kind = {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "map": is_map(tensor)}
            found.append({"bytes": size, **kind})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(x.device.type, amp, enabled=amp is not None):
            module(x)
    return found


def beyond(saved: list[dict[str, object]], fewer: Sequence[dict[str, object]] = ()) -> list[dict[str, object]]:
    """`saved` without one like each of `fewer`: what a longer chain of blocks saves beyond a shorter one."""
    left = list(saved)
    for entry in fewer:
        left.remove(entry)
    return left


def totals(saved: list[dict[str, object]], unit: float) -> dict[str, object]:
    """Saved bytes over `unit`, of maps and of everything, and what they are made of."""
    maps = sum(entry["bytes"] for entry in saved if entry["map"])
    return {"maps": maps / unit, "all": sum(entry["bytes"] for entry in saved) / unit, "saved": saved}


def measure_block(case: BlockCase, options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """One block, ours and eager, in T."""
    amp = DTYPES[options.dtype]
    saved, unit = {"fused_resnet": [], baseline_name(): []}, 0
    for length in lengths(case):
        pair = block_pair(case, options.planes, options.batch, options.extent, device, amp, length)
        x, unit = pair.x.requires_grad_(), pair.unit
        with fused_resnet.use_backend(options.backend):
            saved["fused_resnet"].append(saved_by(pair.ours, x, amp))
        saved[baseline_name()].append(saved_by(pair.eager, x, amp))
    rows = {label: totals(beyond(*found), unit) for label, found in saved.items()}
    ours, eager = rows.values()
    goal = case.goal and case.goal[2]
    over = goal is not None and ours["maps"] > goal + 1e-9
    return {
        "block": case.name,
        "bytes_per_T": unit,
        "rows": rows,
        "ratio": ours["all"] / eager["all"],
        "goal": goal,
        "missed": [f"saves {ours['maps']:.2f}T, goal {goal}T"] if over else [],
    }


def measure_model(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """One network, ours and eager, in bytes per image."""
    images = images_of(options, device)
    rows = {}
    for label, build in model_pair(name, options.seed, device).items():
        with fused_resnet.use_backend(options.backend if label == "fused_resnet" else "auto"):
            rows[label] = totals(saved_by(build(), images, DTYPES[options.dtype]), options.batch)
    ours, eager = rows.values()
    ratio, goal = ours["all"] / eager["all"], MODEL_GOALS.get(name)
    over = goal is not None and ratio > goal
    return {
        "model": name,
        "rows": rows,
        "ratio": ratio,
        "goal": goal,
        "missed": [f"saves {ratio:.3f} of eager's bytes, goal {goal}"] if over else [],
    }


def show(document: dict[str, object]) -> None:
    """The tables."""
    options = document["options"]
    shapes = {
        "blocks": f"a block, in T (batch {options['batch']}, {options['planes']} planes, {options['dtype']})",
        "models": f"a network, in MB per image (batch {options['batch']}, {options['size']} x {options['size']}, "
        f"{options['dtype']})",
    }
    for kind, shape in shapes.items():
        scale, table = (1 if kind == "blocks" else 1e6), []
        for entry in document[kind]:
            for label, row in entry["rows"].items():
                ratio = entry["ratio"] if label == "fused_resnet" else 1.0
                figures = [report.number(row[key] / scale, 2) for key in ("maps", "all")]
                name = entry.get("block") or entry["model"]
                table.append([f"{name}: {label}", *figures, str(len(row["saved"])), f"{ratio:.3f}"])
        if table:
            columns = ["row", "maps", "all", "storages", "of eager"]
            report.show_table(f"Saved for the backward pass of {shape}", columns, table, [COUNTED])


def run(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Count everything that was asked for; the document that becomes the JSON file."""
    torch.manual_seed(options.seed)
    document = {
        "schema": 1,
        "benchmark": "memory",
        "counted": COUNTED,
        "environment": environment.environment(device),
        "options": {key: value for key, value in vars(options).items() if key not in ("json", "check")},
    }
    with counting(options):
        document["blocks"] = [measure_block(case, options, device) for case in CASES]
        document["models"] = [measure_model(name, options, device) for name in options.model]
    return document


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        document = run(options, checked_device(options))
    except (ValueError, ImportError, BackendError) as error:
        print(f"benchmarks.memory: {error}", file=sys.stderr)
        return 2
    print(environment.headline(document["environment"]) + f"; backend {options.backend}\n")
    show(document)
    if options.json:
        report.write_json(options.json, document)
        print(f"written: {options.json}")
    entries = [*document["blocks"], *document["models"]]
    wrong = [f"{entry.get('block') or entry['model']}: {text}" for entry in entries for text in entry["missed"]]
    for text in wrong:
        print(f"GOAL MISSED {text}", file=sys.stderr)
    return 1 if wrong and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
