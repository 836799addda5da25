"""ResNet inference on photographs: ours and frozen beside torchvision and, with --peers, beside other runtimes.

    python -m benchmarks.inference                      # ResNet-50, batch 1 and 8 on a CPU; 1, 32 and 256 on a GPU
    python -m benchmarks.inference --peers --seconds 200
    python -m benchmarks.inference --model resnet18 --batch 4 --out results

Writes inference.json (every raw sample) and inference.png into --out.
Exit status: 0; 1 when one of our rows or torchvision's failed or gave wrong logits; 2 when an argument cannot be used.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fused_resnet import BackendError
from fused_resnet.ops import dispatch

from .meters import rows as meter
from .meters.rows import Row
from .record import environment, report
from .subjects.candidates import (
    CHANNELS_LAST,
    DEFAULT,
    FLOAT32_LIMIT,
    REDUCED_LIMIT,
    Call,
    Network,
    checked,
    prepare,
    variants,
)
from .subjects.peers import PEERS
from .subjects.photos import batch_of_photographs, photographs

CALIBRATION_IMAGES = 8
METHOD = (
    "Interleaved: every row once a round, in an order drawn anew for each round, until the time is used up; a pause "
    "before each call lets the threads of the row before stop spinning. CPU: wall clock around one call; GPU: CUDA "
    "events around one call on an idle device. Inputs are in place (device, layout, dtype) before the clock starts. "
    "Median, 10th and 90th percentile over all rounds, after two warm-up calls. Ratios are ratios of medians of the "
    "same run, above 1 where the row is faster than the baseline in its default layout, or in channels_last. Errors: "
    "logits against a float64 forward pass of the baseline network on the same images."
)
COLUMNS = ("vs default", "vs channels_last", "max abs err", "rel RMS", "top-1 same")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--model", default="resnet50", help="a fused_resnet builder (default: resnet50)")
    add(
        "--weights", help="as the builder takes them; default: an untrained network with the photographs' BN statistics"
    )
    add("--batch", type=int, nargs="+", help="batch sizes (default: 1 8 on a CPU, 1 32 256 on a GPU)")
    add("--size", type=int, default=224, help="side of the square input in pixels (default: 224)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--peers", action="store_true", help="also measure torch.compile, ONNX Runtime and OpenVINO")
    add("--seconds", type=float, default=120.0, help="time for the rounds of all batch sizes together (default: 120)")
    add("--rounds", type=int, default=100, help="at most this many rounds per batch size (default: 100)")
    add("--threads", type=int, help="CPU threads, for every row (default: PyTorch's own choice)")
    add("--pause", type=float, default=0.02, help="seconds before each call, untimed (default: 0.02)")
    add("--seed", type=int, default=0, help="seed of weights, crops and order (default: 0)")
    add("--out", default="benchmarks/results/latest", help="folder for inference.json and inference.png")
    add("--json", help="write the JSON here instead")
    add("--quiet", action="store_true", help="no progress bar")
    return arguments


def checked_device(options: argparse.Namespace) -> torch.device:
    """The device asked for; raises ValueError when it or a number cannot be used."""
    counts = {"--batch": min(options.batch or [1]), "--rounds": options.rounds, "--threads": options.threads}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} {value}: expected at least 1")
    if options.size < 32 or options.seconds < 0 or options.pause < 0:
        raise ValueError("expected --size of at least 32, and --seconds and --pause of at least 0")
    return environment.resolve_device(options.device)


def weights_described(options: argparse.Namespace) -> str:
    """Which weights every row has."""
    if options.weights:
        return Path(options.weights).name
    return (
        f"untrained, seed {options.seed}; batch norm has the statistics of {CALIBRATION_IMAGES} crops of the"
        " photographs, from training-mode passes of the baseline; the same state dict in every row"
    )


def candidates(
    network: Network, images: Tensor, device: torch.device, peers: bool, progress: Callable[[str], None]
) -> tuple[list[Row], dict[str, Call]]:
    """The rows of one batch size, and the calls of those that can be measured, by label."""
    progress("float64 reference")
    gold = network.gold(images, device)
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    rows, calls = [], {}

    def add(row: Row, make: Callable[[], Call]) -> None:
        progress(f"preparing {row['label']}")
        rows.append(row)
        call = meter.started(row, lambda: checked(row, make(), gold)) if row["status"] == "ok" else None
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
    network: Network,
    images: Tensor,
    options: argparse.Namespace,
    device: torch.device,
    seconds: float,
    progress: meter.Progress,
) -> dict[str, object]:
    """All rows of one batch, as a JSON-ready dictionary."""
    rows, calls = candidates(network, images, device, options.peers, lambda text: progress(0.0, text))
    result = meter.timed(
        rows,
        calls,
        len(images),
        device,
        seconds=seconds,
        rounds=options.rounds,
        pause=options.pause,
        seed=options.seed,
        progress=progress,
    )
    meter.compare(rows, "speedup_vs_default", DEFAULT.label(network.baseline_name))
    meter.compare(rows, "speedup_vs_channels_last", CHANNELS_LAST.label(network.baseline_name))
    return result


def cells(row: Row) -> list[str]:
    """A measured row's text below COLUMNS."""
    error = row["error"]
    return [
        report.number(row["speedup_vs_default"], 2, "x"),
        report.number(row["speedup_vs_channels_last"], 2, "x"),
        report.scientific(error["max_abs"]),
        report.scientific(error["relative_rms"]),
        f"{100 * error['top1_agreement']:.0f} %",
    ]


def run(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Measure everything that was asked for; the document that becomes the JSON file."""
    network = Network(options.model, options.seed, options.weights)
    batches = options.batch or ([1, 32, 256] if device.type == "cuda" else [1, 8])
    document = {
        "schema": 1,
        "benchmark": "inference",
        "model": options.model,
        "size": options.size,
        "environment": environment.environment(device),
        "method": METHOD,
        "baseline": network.baseline_is,
        "backend": dispatch.current(),
        "photographs": sorted(photographs()),
        "weights": weights_described(options),
        "options": {name: getattr(options, name) for name in ("seconds", "rounds", "pause", "peers", "seed")},
        "batches": [],
    }
    with report.Progress(f"{options.model} inference", options.quiet) as bar:
        if not options.weights:
            bar.update(0.0, "statistics of the photographs")
            network.calibrate(batch_of_photographs(CALIBRATION_IMAGES, options.size, options.seed + 1))

        def of_batch(batch: int, seconds: float, progress: meter.Progress) -> dict[str, object]:
            images = batch_of_photographs(batch, options.size, options.seed)
            return measure(network, images, options, device, seconds, progress)

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
        print(f"benchmarks.inference: {error}", file=sys.stderr)
        return 2
    print(environment.headline(document["environment"]))
    print(f"baseline: {document['baseline']}\nweights: {document['weights']}\n")
    for result in document["batches"]:
        name = f"{options.model}, batch {result['batch']}, {options.size} x {options.size}, {result['rounds']} rounds"
        meter.show(result, name, COLUMNS, cells)
    wrong = [
        text
        for result in document["batches"]
        for text in meter.failures(result, "logits", lambda row: row["error"]["relative_rms"])
    ]
    title = f"{options.model} inference, {options.size} x {options.size} photographs"
    return meter.finish(options, document, title, wrong)


if __name__ == "__main__":
    sys.exit(main())
