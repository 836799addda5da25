"""The rows of one batch size of the inference benchmark: prepared, measured, judged and shown."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import _environment, _report, _timing
from ._candidates import CHANNELS_LAST, DEFAULT, Call, Network, errors, prepare, variants
from ._peers import PEERS

Row = dict[str, object]
# Relative RMS of the logits against float64 above which a row has not computed the network: float32; bfloat16 or tf32.
FLOAT32_LIMIT, REDUCED_LIMIT = 1e-4, 1e-1
COLUMNS = (
    "median ms",
    "p10",
    "p90",
    "images/s",
    "vs default",
    "vs channels_last",
    "max abs err",
    "rel RMS",
    "top-1 same",
)


@dataclass(frozen=True)
class Settings:
    """How long and in which way one batch size is measured."""

    seconds: float
    rounds: int
    pause: float
    seed: int
    peers: bool


def started(row: Row, make: Callable[[], Call], gold: Tensor) -> Call | None:
    """Build a row's call, check its logits and warm it up; on failure the row says why, and None is returned."""
    before = time.perf_counter()
    try:
        call = make()
        row["error"] = errors(call(), gold)
        call()
    except Exception as error:  # a row that cannot run is reported as such, and the others still run
        row["status"] = f"error: {_timing.describe(error)}"
        return None
    row["prepare_s"] = round(time.perf_counter() - before, 2)
    return call


def candidates(
    network: Network, images: Tensor, device: torch.device, peers: bool, progress: Callable[[str], None]
) -> tuple[list[Row], dict[str, Call]]:
    """The rows of one batch size, and the calls of those that can be measured, by label."""
    gold = network.gold(images, device)
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    rows, calls = [], {}

    def add(row: Row, make: Callable[[], Call]) -> None:
        progress(f"preparing {row['label']}")
        rows.append(row)
        call = started(row, make, gold) if row["status"] == "ok" else None
        if call is not None:
            calls[row["label"]] = call

    for variant in variants(device):
        row = {
            "label": variant.label(network.baseline_name),
            "kind": "ours" if variant.ours else "baseline",
            "status": "ok",
            "limit": REDUCED_LIMIT if variant.reduced or tf32 else FLOAT32_LIMIT,
        }
        add(row, lambda v=variant: prepare(v, network, images, device))
    for peer in PEERS if peers else ():
        status = peer.absent_reason(device) or "ok"
        row = {"label": peer.label, "kind": "peer", "settings": peer.settings, "status": status}
        add(row, lambda p=peer: p.make(network.baseline(), images, device, torch.get_num_threads()))
    return rows, calls


def measure(
    network: Network, images: Tensor, device: torch.device, settings: Settings, progress: Callable[[float, str], None]
) -> dict[str, object]:
    """All rows for one batch, as a JSON-ready dictionary; `progress(fraction done, what is going on)`."""
    rows, calls = candidates(network, images, device, settings.peers, lambda text: progress(0.0, text))
    timed = _timing.interleave(
        calls,
        seconds=settings.seconds,
        timer=_timing.timer_for(device),
        min_rounds=min(3, settings.rounds),
        max_rounds=settings.rounds,
        pause=settings.pause,
        seed=settings.seed,
        on_round=lambda done, fraction: progress(fraction, f"round {done}"),
    )
    medians = {}
    for row in rows:
        label = row["label"]
        if label in timed.errors:
            row["status"] = f"error: {timed.errors[label]}"
        elif label in calls:
            row.update(_timing.summary(timed.samples[label]))
            row["images_per_s"] = len(images) / row["median_ms"] * 1e3
            medians[label] = row["median_ms"]
    for key, variant in {"speedup_vs_default": DEFAULT, "speedup_vs_channels_last": CHANNELS_LAST}.items():
        reference = medians.get(variant.label(network.baseline_name))
        for row in rows:
            row[key] = reference / row["median_ms"] if reference and row["label"] in medians else None
    return {"batch": len(images), "rounds": timed.rounds, "measured_s": round(timed.seconds, 2), "rows": rows}


def failures(result: dict[str, object]) -> list[str]:
    """What is wrong with our rows and the baseline's: did not run, or wrong logits.  A peer's failure is its own."""
    found = []
    for row in result["rows"]:
        where = f"batch {result['batch']}, {row['label']}"
        if row["kind"] == "peer":
            continue
        if row["status"] != "ok":
            found.append(f"{where}: {row['status']}")
        elif not row["error"]["relative_rms"] <= row["limit"]:  # a NaN is no small error
            seen = f"{row['error']['relative_rms']:.1e}"
            found.append(f"{where}: relative RMS error of the logits is {seen}, expected at most {row['limit']:.0e}")
    return found


def show(result: dict[str, object], title: str) -> None:
    """The table of one batch size, fastest first; rows without a figure last, with the reason below."""
    table, notes = [], []
    for row in sorted(result["rows"], key=lambda r: r.get("median_ms", float("inf"))):
        if "median_ms" not in row:
            table.append([row["label"], *["-"] * len(COLUMNS)])
            notes.append(f"{row['label']}: {row['status']}")
            continue
        error, digits = row["error"], 1 if row["median_ms"] >= 10 else 3
        table.append(
            [
                row["label"],
                *(_report.number(row[key], digits) for key in ("median_ms", "p10_ms", "p90_ms")),
                _report.number(row["images_per_s"]),
                _report.number(row["speedup_vs_default"], 2, "x"),
                _report.number(row["speedup_vs_channels_last"], 2, "x"),
                _report.scientific(error["max_abs"]),
                _report.scientific(error["relative_rms"]),
                f"{100 * error['top1_agreement']:.0f} %",
            ]
        )
    _report.show_table(title, ["row", *COLUMNS], table, notes)


def chart(path: Path, document: dict[str, object]) -> str | None:
    """The bar chart of all batch sizes as a PNG; None, or why there is none."""
    panels = {}
    for result in document["batches"]:
        measured = sorted((row for row in result["rows"] if "median_ms" in row), key=lambda row: row["median_ms"])
        bars = [
            _report.Bar(row["label"], row["median_ms"], row["p10_ms"], row["p90_ms"], row["kind"] == "ours")
            for row in measured
        ]
        if bars:
            panels[f"batch {result['batch']}"] = bars
    if not panels:
        return "no chart: no row was measured"
    title = f"{document['model']} inference, {document['size']} x {document['size']} photographs"
    return _report.bar_chart(path, title, panels, _environment.headline(document["environment"]))
