"""Time of a ResNet training step: ours beside torchvision eager, in CUDA graphs and, with --peers, torch.compile.

    python -m benchmarks.training                       # ResNet-50: batch 8, float32 on a CPU; 64 and 256, AMP on a GPU
    python -m benchmarks.training --peers --seconds 300
    python -m benchmarks.training --model resnet18 --batch 4 --size 64 --backend reference --out results

Writes training.json (every raw sample) and training.png into --out.
Exit status: 0; 1 when one of our rows or torchvision's failed, or ours gave wrong gradients; 2 when an argument cannot
be used.
"""

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from fused_resnet import BackendError

from .meters import rows as meter
from .meters.rows import Row
from .record import environment, report
from .subjects.candidates import Network
from .subjects.photos import batch_of_photographs, photographs
from .subjects.steps import Recipe, Step, gold, parity, peak_memory, prepare, recipes

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
COLUMNS = ("vs eager", "loss err", "grad err", "of eager's", "worst", "peak MiB")


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
    return environment.resolve_device(options.device)


def checked(row: Row, step: Step, truth: dict[str, object], device: torch.device) -> Step:
    """`step`, warmed up; the row gets its first step's errors and its peak of memory."""
    row["parity"] = parity(step, truth)
    step()
    row |= peak_memory(step, device)
    return step


def judge(rows: list[Row], eager: str) -> None:
    """Give every row its speed and its gradients' error over eager's, and ours what that error may be."""
    meter.compare(rows, "speedup_vs_eager", eager)
    errors = {row["label"]: row["parity"]["gradient_rms"] for row in rows if "parity" in row}
    baseline = max((errors[row["label"]] for row in rows if row["kind"] == "baseline" and "parity" in row), default=0.0)
    for row in rows:
        mine, theirs = errors.get(row["label"]), errors.get(eager)
        row["error_vs_eager"] = mine / theirs if mine is not None and theirs else None
        if row["kind"] == "ours":
            # beside a baseline that is not finite nothing is right
            row["limit"] = PROMISE * baseline + FLOOR if math.isfinite(baseline) else 0.0


def measure(
    network: Network,
    images: Tensor,
    labels: Tensor,
    rows_of: Sequence[Recipe],
    options: argparse.Namespace,
    device: torch.device,
    seconds: float,
    progress: meter.Progress,
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

        def prepared(row: Row = row, recipe: Recipe = recipe) -> Step:
            return checked(row, prepare(recipe, network, images, labels, device, options.backend), truth, device)

        step = meter.started(row, prepared)
        if step is not None:
            steps[row["label"]] = step
    result = meter.timed(
        rows,
        steps,
        len(images),
        device,
        seconds=seconds,
        rounds=options.rounds,
        seed=options.seed,
        progress=progress,
    )
    judge(rows, Recipe(False, rows_of[0].amp).label(network.baseline_name))
    return result


def cells(row: Row) -> list[str]:
    """A measured row's text below COLUMNS."""
    seen = row["parity"]
    return [
        report.number(row["speedup_vs_eager"], 2, "x"),
        report.scientific(seen["loss_relative"]),
        report.scientific(seen["gradient_rms"]),
        report.number(row["error_vs_eager"], 2, "x"),
        report.scientific(seen["gradient_worst"]),
        report.number(row.get("peak_MiB"), 0),
    ]


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
        "environment": environment.environment(device),
        "method": METHOD,
        "baseline": network.baseline_is,
        "backend": options.backend,
        "photographs": sorted(photographs()),
        "options": {name: getattr(options, name) for name in ("seconds", "rounds", "peers", "seed")},
        "batches": [],
    }
    with report.Progress(f"{options.model} training", options.quiet) as bar:

        def of_batch(batch: int, seconds: float, progress: meter.Progress) -> dict[str, object]:
            images = batch_of_photographs(batch, options.size, options.seed)
            labels = torch.randint(1000, (batch,), generator=torch.Generator().manual_seed(options.seed))
            return measure(network, images, labels, rows, options, device, seconds, progress)

        document["batches"] += meter.each_batch(batches, options.seconds, bar, of_batch)
    return document


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        device = checked_device(options)
        with meter.cudnn_at_its_best(options.threads):
            document = run(options, device)
    except (ValueError, TypeError, OSError, ImportError, BackendError) as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 2
    print(environment.headline(document["environment"]))
    print(f"baseline: {document['baseline']}; backend: {document['backend']}; {document['dtype']}\n")
    for result in document["batches"]:
        name = f"{options.model} training, batch {result['batch']}, {options.size} x {options.size}"
        meter.show(result, f"{name}, {result['rounds']} rounds", COLUMNS, cells)
    wrong = [
        text
        for result in document["batches"]
        for text in meter.failures(result, "gradients", lambda row: row["parity"]["gradient_rms"])
    ]
    title = f"{options.model} training step, {options.size} x {options.size}, {document['dtype']}"
    return meter.finish(options, document, title, wrong)


if __name__ == "__main__":
    sys.exit(main())
