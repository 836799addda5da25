"""Bytes that one training step moves, op by op as dispatched: ours beside torchvision eager, on any device.

    python -m benchmarks.traffic                        # single blocks in T, ResNet-50 and ResNet-18 in MB per image
    python -m benchmarks.traffic --shapes --batch 256   # the same at a batch that no CPU would finish
    python -m benchmarks.traffic --ops --model          # every op of the single blocks, no network
    python -m benchmarks.traffic --dtype bfloat16 --json traffic.json

The goal of ResNet-50, 0.45 of eager's bytes, is for batch 256 (0.447): weights and vectors, which do not grow with the
batch, weigh more at smaller ones (0.52 at 32, 0.77 at 8).
T is one map of the block's own width at its output's size; a bottleneck's output is 4T.  A step is a forward pass, the
loss and a backward pass: what an optimizer adds is the same for both.
Exit status: 0; 1 when --check is given and a goal is missed; 2 when an argument cannot be used.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence

import torch

import fused_resnet
from fused_resnet import BackendError

from .meters.traffic import OpTraffic, block_step, is_map_of, model_step, phase_sum
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

PHASES = ("forward", "backward")
MODEL_GOALS = {"resnet50": 0.45}  # of eager's bytes
SLACK = 1e-9  # sums of whole maps in T are exact up to the division
RULES = (
    "Counted at the dispatcher: each distinct input region once per op, each output once, in-place both; views, "
    "metadata and allocations nothing. maps: feature maps only; all: weights, vectors and partial sums too."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.traffic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_meter_arguments(arguments)
    arguments.add_argument("--ops", action="store_true", help="print every op of the single blocks")
    return arguments


def by_op(ops: Sequence[OpTraffic], unit: float) -> list[dict[str, object]]:
    """The ops of a step merged by phase, name and what they move, in the order of first use; bytes over `unit`."""
    merged: dict[tuple[str, str, str], list[OpTraffic]] = defaultdict(list)
    for op in ops:
        merged[op.phase, op.name, "maps" if op.maps else "vectors"].append(op)
    return [
        {
            "phase": phase,
            "op": name,
            "moves": moves,
            "calls": len(same),
            "maps_read": sum(op.map_read for op in same) / unit,
            "maps_written": sum(op.map_written for op in same) / unit,
            "all": sum(op.total for op in same) / unit,
        }
        for (phase, name, moves), same in merged.items()
    ]


def summed(ops: Sequence[OpTraffic], unit: float) -> dict[str, object]:
    """Bytes over `unit` of each phase and of the step, of maps and of everything."""
    found = {}
    for kind, maps in (("maps", True), ("all", False)):
        for phase in PHASES:
            found[f"{phase}_{kind}"] = phase_sum(ops, phase, maps) / unit
        found[f"step_{kind}"] = found[f"forward_{kind}"] + found[f"backward_{kind}"]
    return found


def missed(found: dict[str, object], goal: tuple[float, float, float | None] | None) -> list[str]:
    """The phases of a block whose maps are above its goal."""
    limits = zip(PHASES, goal) if goal else ()
    return [
        f"{phase} moves {found[f'{phase}_maps']:.2f}T, goal {limit}T"
        for phase, limit in limits
        if limit is not None and found[f"{phase}_maps"] > limit + SLACK
    ]


def _measure_chain(case: BlockCase, length: int, options: argparse.Namespace, device: torch.device) -> tuple[dict, int]:
    """The rows of `length` blocks one after the other, in T, and the bytes of one T."""
    amp = DTYPES[options.dtype]
    pair = block_pair(case, options.planes, options.batch, options.extent, device, amp, length)
    is_map = is_map_of(options.batch, [pair.ours])
    with fused_resnet.use_backend(options.backend):
        ours = block_step(pair.ours, pair.x, pair.grad, is_map, amp)
    rows = {"fused_resnet": ours, baseline_name(): block_step(pair.eager, pair.x, pair.grad, is_map, amp)}
    return {label: {**summed(ops, pair.unit), "ops": by_op(ops, pair.unit)} for label, ops in rows.items()}, pair.unit


def _less(longer: dict, shorter: dict) -> dict:
    """What the longer chain's rows have beyond the shorter one's."""
    rows = {}
    for label, row in longer.items():
        fewer = {_merged_by(op): op for op in shorter[label]["ops"]}
        figures = {key: value - shorter[label][key] for key, value in row.items() if key != "ops"}
        ops = [_op_less(op, fewer.get(_merged_by(op), {})) for op in row["ops"]]
        rows[label] = {**figures, "ops": [op for op in ops if op["calls"]]}
    return rows


def _merged_by(op: dict) -> tuple[str, str, str]:
    return op["phase"], op["op"], op["moves"]


def _op_less(op: dict, fewer: dict) -> dict:
    return {key: value if isinstance(value, str) else value - fewer.get(key, 0) for key, value in op.items()}


def measure_block(case: BlockCase, options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """One block, ours and eager, in T."""
    chains = [_measure_chain(case, length, options, device) for length in lengths(case)]
    entries, unit = chains[0] if len(chains) == 1 else (_less(chains[0][0], chains[1][0]), chains[0][1])
    return {
        "block": case.name,
        "bytes_per_T": unit,
        "rows": entries,
        "ratio": entries["fused_resnet"]["step_maps"] / entries[baseline_name()]["step_maps"],
        "goal": case.goal and {"forward": case.goal[0], "backward": case.goal[1]},
        "missed": missed(entries["fused_resnet"], case.goal),
    }


def measure_model(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """One network, ours and eager, in bytes per image."""
    images = images_of(options, device)
    labels = torch.arange(options.batch, device=device)
    entries = {}
    for label, build in model_pair(name, options.seed, device).items():
        model = build()
        backend = options.backend if label == "fused_resnet" else "auto"
        with fused_resnet.use_backend(backend):
            ops = model_step(model, images, labels, is_map_of(options.batch, [model]), DTYPES[options.dtype])
        entries[label] = {**summed(ops, options.batch), "ops": by_op(ops, options.batch)}
    ours, eager = entries.values()
    ratio, goal = ours["step_all"] / eager["step_all"], MODEL_GOALS.get(name)
    over = goal is not None and ratio > goal
    return {
        "model": name,
        "rows": entries,
        "ratio": ratio,
        "maps_ratio": ours["step_maps"] / eager["step_maps"],
        "goal": goal,
        "missed": [f"the step moves {ratio:.3f} of eager's bytes, goal {goal} at batch 256"] if over else [],
    }


def show(document: dict[str, object], ops: bool) -> None:
    """The tables."""
    columns = ["row", *(f"{phase} {kind}" for kind in ("maps", "all") for phase in (*PHASES, "step")), "of eager"]
    keys = [f"{phase}_{kind}" for kind in ("maps", "all") for phase in (*PHASES, "step")]
    table = []
    for entry in document["blocks"]:
        for label, row in entry["rows"].items():
            ratio = entry["ratio"] if label == "fused_resnet" else 1.0
            figures = [report.number(row[key], 2) for key in keys]
            table.append([f"{entry['block']}: {label}", *figures, f"{ratio:.3f}"])
    options = document["options"]
    shape = f"batch {options['batch']}, {options['planes']} planes, output {options['extent']} x {options['extent']}"
    report.show_table(f"One training step of a block, in T ({shape}, {options['dtype']})", columns, table, [RULES])
    for entry in document["blocks"] if ops else ():
        for label, row in entry["rows"].items():
            lines = [
                [f"{op['phase']} {op['op']}", str(op["calls"]), *(f"{op[key]:.2f}" for key in op if key in OP_COLUMNS)]
                for op in row["ops"]
            ]
            report.show_table(f"{entry['block']}: {label}, in T", ["op", "calls", *OP_COLUMNS.values()], lines)
    table = []
    for entry in document["models"]:
        for label, row in entry["rows"].items():
            ratio = entry["ratio"] if label == "fused_resnet" else 1.0
            figures = [report.number(row[key] / 1e6, 1) for key in keys]
            table.append([f"{entry['model']}: {label}", *figures, f"{ratio:.3f}"])
    if table:
        shape = f"batch {options['batch']}, {options['size']} x {options['size']}, {options['dtype']}"
        title = f"One training step of a network, in MB per image ({shape})"
        report.show_table(title, columns, table, ["of eager: the step's bytes, everything counted"])


OP_COLUMNS = {"maps_read": "maps read", "maps_written": "maps written", "all": "all"}


def run(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Count everything that was asked for; the document that becomes the JSON file."""
    torch.manual_seed(options.seed)
    document = {
        "schema": 1,
        "benchmark": "traffic",
        "rules": RULES,
        "environment": environment.environment(device),
        "options": {key: value for key, value in vars(options).items() if key not in ("json", "check", "ops")},
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
        print(f"benchmarks.traffic: {error}", file=sys.stderr)
        return 2
    print(environment.headline(document["environment"]) + f"; backend {options.backend}\n")
    show(document, options.ops)
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
