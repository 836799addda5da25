"""Time of a ResNet training step: ours beside torchvision eager, in CUDA graphs and, with --peers, torch.compile.

    python -m benchmarks.training                       # ResNet-50: batch 8, float32 on a CPU; 64 and 256, AMP on a GPU
    python -m benchmarks.training --peers --seconds 300
    python -m benchmarks.training --model resnet18 --batch 4 --size 64 --backend reference --out results

Writes training.json (every raw sample) and training.png into --out.
Exit status: 0; 1 when one of our rows or torchvision's failed, or ours gave wrong gradients; 2 when an argument cannot
be used.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fused_resnet import BackendError

from . import _environment, _report, _timing
from ._candidates import Network
from ._photos import batch_of_photographs, photographs
from ._steps import Recipe, Step, gold, parity, prepare, recipes

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROMISE = 2.0  # the gradients' error is at most this multiple of eager's own in the same precision
FLOOR = 1e-6  # beside an eager row that is right to the last digit
METHOD = (
    "Interleaved: every row once a round, in an order drawn anew for each round, until the time is used up. A step is "
    "zero_grad, forward, cross entropy, backward and SGD with momentum; images are in place before the clock starts. "
    "CPU: wall clock around one step; GPU: CUDA events around one step on an idle device. Median, 10th and 90th "
    "percentile over all rounds, after the parity step and one warm-up. Errors: the first step's loss and gradients "
    "against a float64 step of the baseline on the same batch, gradients as RMS over all parameters together."
)
COLUMNS = ("median ms", "p10", "p90", "images/s", "vs eager", "loss err", "grad err", "of eager's", "worst", "peak MiB")
Row = dict[str, object]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--model", default="resnet50", help="a fused_resnet builder (default: resnet50)")
    add("--batch", type=int, nargs="+", help="batch sizes (default: 8 on a CPU, 64 256 on a GPU)")
    add("--size", type=int, default=224, help="side of the square input in pixels (default: 224)")
    add("--dtype", choices=tuple(DTYPES), help="float32, or autocast's (default: float32 on a CPU, bfloat16 on a GPU)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--backend", default="auto", help="for fused_resnet's ops (default: auto)")
    add("--peers", action="store_true", help="also measure torch.compile")
    add("--seconds", type=float, default=120.0, help="time for the rounds of all batch sizes together (default: 120)")
    add("--rounds", type=int, default=50, help="at most this many rounds per batch size (default: 50)")
    add("--threads", type=int, help="CPU threads, for every row (default: PyTorch's own choice)")
    add("--seed", type=int, default=0, help="seed of weights, crops, labels and order (default: 0)")
    add("--out", default="benchmarks/results/latest", help="folder for training.json and training.png")
    add("--json", help="write the JSON here instead")
    add("--quiet", action="store_true", help="no progress bar")
    return arguments


def checked_device(options: argparse.Namespace) -> torch.device:
    """The device asked for; raises ValueError when it or a number cannot be used."""
    counts = {"--batch": min(options.batch or [2]), "--rounds": options.rounds, "--threads": options.threads}
    for name, value in counts.items():
        smallest = 2 if name == "--batch" else 1  # batch norm has no statistics of one value
        if value is not None and value < smallest:
            raise ValueError(f"{name} {value}: expected at least {smallest}")
    if options.size < 32 or options.seconds < 0:
        raise ValueError("expected --size of at least 32 and --seconds of at least 0")
    return _environment.resolve_device(options.device)


def started(row: Row, make: Callable[[], Step], truth: dict[str, object], device: torch.device) -> Step | None:
    """Build a row's step, compare its first step with float64 and warm it up; on failure the row says why."""
    before = time.perf_counter()
    try:
        step = make()
        row["parity"] = parity(step, truth)
        if device.type == "cuda" and step.replay is None:  # a graph's memory is its pool's, and is not counted again
            torch.cuda.reset_peak_memory_stats(device)
            used = torch.cuda.memory_allocated(device)
            step()
            row["peak_MiB"] = (torch.cuda.max_memory_allocated(device) - used) / 2**20
        else:
            step()
    except Exception as error:  # a row that cannot run is reported as such, and the others still run
        row["status"] = f"error: {_timing.describe(error)}"
        return None
    row["prepare_s"] = round(time.perf_counter() - before, 2)
    return step


def judge(rows: list[Row], eager: str) -> None:
    """Give every row its speed and its gradients' error over eager's."""
    reference = next((row for row in rows if row["label"] == eager), {})
    for row in rows:
        mine, theirs = row.get("median_ms"), reference.get("median_ms")
        row["speedup_vs_eager"] = theirs / mine if mine and theirs else None
        errors = [entry["parity"]["gradient_rms"] for entry in (row, reference) if "parity" in entry]
        row["error_vs_eager"] = errors[0] / errors[1] if len(errors) == 2 and errors[1] else None


def measure(
    network: Network,
    images: Tensor,
    labels: Tensor,
    rows_of: Sequence[Recipe],
    options: argparse.Namespace,
    device: torch.device,
    seconds: float,
    progress: Callable[[float, str], None],
) -> dict[str, object]:
    """All rows of one batch, as a JSON-ready dictionary."""
    progress(0.0, "float64 step")
    truth = gold(network, images, labels, device)
    rows, steps = [], {}
    torch.compiler.reset()  # the batch size before has left its code behind
    for recipe in rows_of:
        kind = "peer" if recipe.compile_mode else "ours" if recipe.ours else "baseline"
        row = {"label": recipe.label(network.baseline_name), "kind": kind, "status": "ok"}
        progress(0.0, f"preparing {row['label']}")
        rows.append(row)
        step = started(
            row, lambda r=recipe: prepare(r, network, images, labels, device, options.backend), truth, device
        )
        if step is not None:
            steps[row["label"]] = step
    timed = _timing.interleave(
        steps,
        seconds=seconds,
        timer=_timing.timer_for(device),
        min_rounds=min(3, options.rounds),
        max_rounds=options.rounds,
        seed=options.seed,
        on_round=lambda done, fraction: progress(fraction, f"round {done}"),
    )
    for row in rows:
        label = row["label"]
        if label in timed.errors:
            row["status"] = f"error: {timed.errors[label]}"
        elif label in steps:
            row.update(_timing.summary(timed.samples[label]))
            row["images_per_s"] = len(images) / row["median_ms"] * 1e3
    judge(rows, Recipe(False, rows_of[0].amp).label(network.baseline_name))
    return {"batch": len(images), "rounds": timed.rounds, "measured_s": round(timed.seconds, 2), "rows": rows}


def failures(result: dict[str, object]) -> list[str]:
    """What is wrong with our rows and the baseline's: did not run, or gradients further off than promised."""
    found = []
    eager = max(
        (row["parity"]["gradient_rms"] for row in result["rows"] if row["kind"] == "baseline" and "parity" in row),
        default=0.0,
    )
    limit = PROMISE * eager + FLOOR
    for row in result["rows"]:
        where = f"batch {result['batch']}, {row['label']}"
        if row["kind"] == "peer":
            continue
        if row["status"] != "ok":
            found.append(f"{where}: {row['status']}")
        elif row["kind"] == "ours" and not row["parity"]["gradient_rms"] <= limit:  # a NaN is no small error
            seen = f"{row['parity']['gradient_rms']:.1e}"
            found.append(f"{where}: relative RMS error of the gradients is {seen}, expected at most {limit:.1e}")
    return found


def show(result: dict[str, object], title: str) -> None:
    """The table of one batch size, fastest first; rows without a figure last, with the reason below."""
    table, notes = [], []
    for row in sorted(result["rows"], key=lambda r: r.get("median_ms", float("inf"))):
        if "median_ms" not in row:
            table.append([row["label"], *["-"] * len(COLUMNS)])
            notes.append(f"{row['label']}: {row['status']}")
            continue
        seen, digits = row["parity"], 1 if row["median_ms"] >= 10 else 3
        table.append(
            [
                row["label"],
                *(_report.number(row[key], digits) for key in ("median_ms", "p10_ms", "p90_ms")),
                _report.number(row["images_per_s"]),
                _report.number(row["speedup_vs_eager"], 2, "x"),
                _report.scientific(seen["loss_relative"]),
                _report.scientific(seen["gradient_rms"]),
                _report.number(row["error_vs_eager"], 2, "x"),
                _report.scientific(seen["gradient_worst"]),
                _report.number(row.get("peak_MiB"), 0),
            ]
        )
    _report.show_table(title, ["row", *COLUMNS], table, notes)


def chart(path: Path, document: dict[str, object]) -> str | None:
    """The bar chart of all batch sizes as a PNG; None, or why there is none."""
    panels = {}
    for result in document["batches"]:
        measured = sorted((row for row in result["rows"] if "median_ms" in row), key=lambda row: row["median_ms"])
        bars = [
            _report.Bar(
                row["label"], row["median_ms"], row["p10_ms"], row["p90_ms"], row["label"].startswith("fused_resnet")
            )
            for row in measured
        ]
        if bars:
            panels[f"batch {result['batch']}"] = bars
    if not panels:
        return "no chart: no row was measured"
    title = f"{document['model']} training step, {document['size']} x {document['size']}, {document['dtype']}"
    return _report.bar_chart(path, title, panels, _environment.headline(document["environment"]))


def run(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Measure everything that was asked for; the document that becomes the JSON file."""
    network = Network(options.model, options.seed)
    on_gpu = device.type == "cuda"
    batches = options.batch or ([64, 256] if on_gpu else [8])
    dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    rows = recipes(device, DTYPES[dtype], options.peers)
    document = {
        "schema": 1,
        "benchmark": "training",
        "model": options.model,
        "size": options.size,
        "dtype": dtype,
        "environment": _environment.environment(device),
        "method": METHOD,
        "baseline": network.baseline_is,
        "backend": options.backend,
        "photographs": sorted(photographs()),
        "options": {name: getattr(options, name) for name in ("seconds", "rounds", "peers", "seed")},
        "batches": [],
    }
    with _report.Progress(f"{options.model} training", options.quiet) as bar:
        left = options.seconds
        for index, batch in enumerate(batches):

            def progress(fraction: float, text: str, index: int = index, batch: int = batch) -> None:
                bar.update((index + fraction) / len(batches), f"batch {batch}, {text}")

            images = batch_of_photographs(batch, options.size, options.seed)
            labels = torch.randint(1000, (batch,), generator=torch.Generator().manual_seed(options.seed))
            share = left / (len(batches) - index)
            document["batches"].append(measure(network, images, labels, rows, options, device, share, progress))
            left = max(0.0, left - document["batches"][-1]["measured_s"])
    return document


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        device = checked_device(options)
        torch.set_num_threads(options.threads or threads)
        torch.backends.cudnn.benchmark = True  # in cuDNN's favour: it tries its algorithms before the clock starts
        document = run(options, device)
    except (ValueError, TypeError, OSError, ImportError, BackendError) as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
    print(_environment.headline(document["environment"]))
    print(f"baseline: {document['baseline']}; backend: {document['backend']}; {document['dtype']}\n")
    for result in document["batches"]:
        name = f"{options.model} training, batch {result['batch']}, {options.size} x {options.size}"
        show(result, f"{name}, {result['rounds']} rounds")
    folder = Path(options.out)
    target = Path(options.json) if options.json else folder / "training.json"
    _report.write_json(target, document)
    missing = chart(folder / "training.png", document)
    print(f"written: {target}" + (f"; {missing}" if missing else f" and {folder / 'training.png'}"))
    wrong = [text for result in document["batches"] for text in failures(result)]
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
