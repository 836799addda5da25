"""What the benchmarks of a whole network share: the rows of a batch size built, timed in turn, shown and charted."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..record import environment, report
from . import timing

Row = dict[str, object]
Call = Callable[[], object]
Progress = Callable[[float, str], None]  # the fraction done, and what is going on
COLUMNS = ("row", "median ms", "p10", "p90", "images/s")


@contextlib.contextmanager
def cudnn_at_its_best(threads: int | None = None) -> Iterator[None]:
    """cuDNN tries its algorithms before the clock starts, in its favour; with `threads`, on so many CPU threads."""
    before, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(threads or before)
        torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = benchmark


def started(row: Row, prepare: Callable[[], Call]) -> Call | None:
    """What `prepare` builds, checks and warms up; where it fails the row says why, and None is returned."""
    before = time.perf_counter()
    try:
        call = prepare()
    except Exception as error:  # a row that cannot run is reported as such, and the others still run
        row["status"] = f"error: {timing.describe(error)}"
        return None
    row["prepare_s"] = round(time.perf_counter() - before, 2)
    return call


def timed(
    rows: list[Row],
    calls: dict[str, Call],
    batch: int,
    device: torch.device,
    *,
    seconds: float,
    rounds: int,
    pause: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda fraction, text: None,
) -> dict[str, object]:
    """Time the calls, by label, in turn, and give every row its figures: one batch size, JSON-ready."""
    found = timing.interleave(
        calls,
        seconds=seconds,
        timer=timing.timer_for(device),
        min_rounds=min(3, rounds),
        max_rounds=rounds,
        pause=pause,
        seed=seed,
        on_round=lambda done, fraction: progress(fraction, f"round {done}"),
    )
    for row in rows:
        label = row["label"]
        if label in found.errors:
            row["status"] = f"error: {found.errors[label]}"
        elif label in calls:
            row.update(timing.summary(found.samples[label]))
            row["images_per_s"] = batch / row["median_ms"] * 1e3
    return {"batch": batch, "rounds": found.rounds, "measured_s": round(found.seconds, 2), "rows": rows}


def compare(rows: list[Row], key: str, reference: str) -> None:
    """Give every row, as `key`, how many times as fast as the row `reference` it is; None where either has no time."""
    theirs = next((row.get("median_ms") for row in rows if row["label"] == reference), None)
    for row in rows:
        mine = row.get("median_ms")
        row[key] = theirs / mine if mine and theirs else None


def each_batch(
    batches: Sequence[int], seconds: float, bar: report.Progress, measure: Callable[[int, float, Progress], dict]
) -> list[dict[str, object]]:
    """`measure(batch, seconds, progress)` of every batch size, which share the time."""
    results, left = [], seconds
    for index, batch in enumerate(batches):

        def progress(fraction: float, text: str, index: int = index, batch: int = batch) -> None:
            bar.update((index + fraction) / len(batches), f"batch {batch}, {text}")

        results.append(measure(batch, left / (len(batches) - index), progress))
        # What a small batch leaves of its share is the next one's.
        left = max(0.0, left - results[-1]["measured_s"])
    return results


def failures(result: dict[str, object], what: str, error: Callable[[Row], float]) -> list[str]:
    """What is wrong with our rows and the baseline's: did not run, or the error of `what` is above the row's limit.

    A peer's failure is its own.
    """
    found = []
    for row in result["rows"]:
        where = f"batch {result['batch']}, {row['label']}"
        if row["kind"] == "peer":
            continue
        if row["status"] != "ok":
            found.append(f"{where}: {row['status']}")
        elif "limit" in row and not error(row) <= row["limit"]:  # a NaN is no small error
            seen = f"{error(row):.1e}, expected at most {row['limit']:.1e}"
            found.append(f"{where}: relative RMS error of the {what} is {seen}")
    return found


def show(result: dict[str, object], title: str, columns: Sequence[str], cells: Callable[[Row], Sequence[str]]) -> None:
    """The table of one batch size, fastest first, `cells` below `columns` of its own; rows without a time last, with
    the reason below."""
    table, notes = [], []
    for row in sorted(result["rows"], key=lambda r: r.get("median_ms", float("inf"))):
        if "median_ms" not in row:
            table.append([row["label"], *["-"] * (len(COLUMNS) - 1 + len(columns))])
            notes.append(f"{row['label']}: {row['status']}")
            continue
        digits = 1 if row["median_ms"] >= 10 else 3
        times = (report.number(row[key], digits) for key in ("median_ms", "p10_ms", "p90_ms"))
        table.append([row["label"], *times, report.number(row["images_per_s"]), *cells(row)])
    report.show_table(title, [*COLUMNS, *columns], table, notes)


def chart(path: Path, document: dict[str, object], title: str) -> str | None:
    """The bar chart of all batch sizes as a PNG; None, or why there is none."""
    panels = {}
    for result in document["batches"]:
        measured = sorted((row for row in result["rows"] if "median_ms" in row), key=lambda row: row["median_ms"])
        bars = [
            report.Bar(
                row["label"], row["median_ms"], row["p10_ms"], row["p90_ms"], row["label"].startswith("fused_resnet")
            )
            for row in measured
        ]
        if bars:
            panels[f"batch {result['batch']}"] = bars
    if not panels:
        return "no chart: no row was measured"
    return report.bar_chart(path, title, panels, environment.headline(document["environment"]))


def finish(options: argparse.Namespace, document: dict[str, object], title: str, wrong: list[str]) -> int:
    """Write the document and its chart, say where they are and what is wrong; the exit status."""
    folder, name = Path(options.out), document["benchmark"]
    target = Path(options.json) if options.json else folder / f"{name}.json"
    report.write_json(target, document)
    missing = chart(folder / f"{name}.png", document, title)
    print(f"written: {target}" + (f"; {missing}" if missing else f" and {folder / f'{name}.png'}"))
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0
