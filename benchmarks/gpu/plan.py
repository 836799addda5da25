"""All the rows of `make gpu`, their order, and which results mean that something is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import baselines, inference, layers, micro, tests, training
from . import tune as tuning
from .results import at_most
from .rows import Row, Settings, ordered

# Parts whose comparisons measure torchvision and cuDNN themselves: beside them the baselines need not do so too.
COMPARING = ("inference", "training", "layers")
PROMISE = 2.0  # our gradients' error is at most this multiple of eager's in the same precision
FLOOR = 1e-6  # beside an eager step that is right to the last digit


@dataclass(frozen=True)
class Plan:
    """The rows as a function of the settings; it can be sent to a worker, which then has the same ones.

    alone: the baselines are measured without ours beside them.
    """

    alone: bool

    def __call__(self, settings: Settings) -> list[Row]:
        return [
            *micro.rows(settings),  # what the tests' kernels rest on
            *tests.rows(settings),
            *baselines.rows(settings, self.alone),
            *inference.rows(settings),
            *training.rows(settings),
            *layers.rows(settings),
            *tuning.rows(settings),
        ]


def plan_for(parts: Iterable[str]) -> Plan:
    """The plan for the parts that were asked for."""
    return Plan(alone=not set(parts) & set(COMPARING))


def order_of(rows: Sequence[Row], parts: Sequence[str], before: Sequence[dict[str, object]]) -> list[Row]:
    """The rows of `parts` in the order they are measured; convolutions to tune by what they lost when last measured."""
    tune = [row for row in rows if row.part == "tune"]
    others = [row for row in rows if row.part != "tune"]
    return ordered([*others, *tuning.by_loss(tune, before)], parts)


def problems(row: dict[str, object]) -> list[str]:
    """What is wrong in a row of the JSON: an error, a failed test, ours further from float64 than promised."""
    where, status = f"{row['part']}/{row['name']}", row["status"]
    if status.startswith(("error", "failed", "stopped")) or "unusable" in status:
        return [f"{where}: {status}"]
    found = [text for entry in row.get("rows", ()) for text in _candidate_problems(entry)]
    found += [f"steps differ: {row['first_difference']}"] if row.get("equal") is False else []
    for report in row.get("reports", ()):
        # With tf32 allowed cuDNN may still compute in float32, and is then no measure of ours.
        if "error" in report or (not report["passed"] and report["dtype"] != "tfloat32"):
            what = f"{report['dtype']}, {report['backend']}{', frozen' if report['frozen'] else ''}"
            found.append(f"{what}: {report.get('error', 'a stage is further from float64 than allowed')}")
    for label, error in row.get("errors", {}).items():
        if not at_most(error, row["limit"]):
            found.append(f"{label} differs from eager by {error}, limit {row['limit']}")
    for name, times in row.get("passes", {}).items():
        found += [f"{name}, {label}: {entry['error']}" for label, entry in times.items() if "error" in entry]
    return [f"{where}: {text}" for text in found]


def _candidate_problems(entry: dict[str, object]) -> list[str]:
    """A peer's own failure is its own; ours and torchvision's must run, and be right."""
    if entry.get("kind") == "peer":
        return []
    if entry["status"] != "ok":
        return [f"{entry['label']}: {entry['status']}"]
    found = []
    if "error" in entry and not at_most(entry["error"]["relative_rms"], entry["limit"]):
        found.append(f"{entry['label']}: relative RMS error of the logits is {entry['error']['relative_rms']}")
    if entry.get("loss_is_finite") is False:
        found.append(f"{entry['label']}: the loss is not finite")
    eager = entry.get("eager_gradient_rms")
    # Where eager itself gives no finite gradient there is nothing to be held to.
    judged = eager is not None and math.isfinite(eager) and entry["dtype"] != "tfloat32"
    if judged and not at_most(entry["gradient_rms"], PROMISE * eager + FLOOR):
        found.append(
            f"{entry['label']}, {entry['dtype']}: gradients err by {entry['gradient_rms']}, eager's by {eager}"
        )
    return found
