"""ResNet inference on photographs: ours and frozen beside torchvision and, with --peers, beside other runtimes.

    python -m benchmarks.inference                      # ResNet-50, batch 1 and 8 on a CPU; 1, 32 and 256 on a GPU
    python -m benchmarks.inference --peers --seconds 200
    python -m benchmarks.inference --model resnet18 --batch 4 --out results

Writes inference.json (every raw sample) and inference.png into --out.
Exit status: 0; 1 when one of our rows or torchvision's failed or gave wrong logits; 2 when an argument cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fused_resnet import BackendError
from fused_resnet.ops import dispatch

from . import _environment, _report, _rows
from ._candidates import Network
from ._photos import batch_of_photographs, photographs

CALIBRATION_IMAGES = 8
METHOD = (
    "Interleaved: every row once a round, in an order drawn anew for each round, until the time is used up; a pause "
    "before each call lets the threads of the row before stop spinning. CPU: wall clock around one call; GPU: CUDA "
    "events around one call on an idle device. Inputs are in place (device, layout, dtype) before the clock starts. "
    "Median, 10th and 90th percentile over all rounds, after two warm-up calls. Ratios are ratios of medians of the "
    "same run, above 1 where the row is faster than the baseline in its default layout, or in channels_last. Errors: "
    "logits against a float64 forward pass of the baseline network on the same images."
)


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
    return _environment.resolve_device(options.device)


def weights_described(options: argparse.Namespace) -> str:
    """Which weights every row has."""
    if options.weights:
        return Path(options.weights).name
    return (
        f"untrained, seed {options.seed}; batch norm has the statistics of {CALIBRATION_IMAGES} crops of the"
        " photographs, from training-mode passes of the baseline; the same state dict in every row"
    )


def run(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Measure everything that was asked for; the document that becomes the JSON file."""
    network = Network(options.model, options.seed, options.weights)
    batches = options.batch or ([1, 32, 256] if device.type == "cuda" else [1, 8])
    document = {
        "schema": 1,
        "benchmark": "inference",
        "model": options.model,
        "size": options.size,
        "environment": _environment.environment(device),
        "method": METHOD,
        "baseline": network.baseline_is,
        "backend": dispatch.current(),
        "photographs": sorted(photographs()),
        "weights": weights_described(options),
        "options": {name: getattr(options, name) for name in ("seconds", "rounds", "pause", "peers", "seed")},
        "batches": [],
    }
    with _report.Progress(f"{options.model} inference", options.quiet) as bar:
        if not options.weights:
            bar.update(0.0, "statistics of the photographs")
            network.calibrate(batch_of_photographs(CALIBRATION_IMAGES, options.size, options.seed + 1))
        left = options.seconds
        for index, batch in enumerate(batches):

            def progress(fraction: float, text: str, index: int = index, batch: int = batch) -> None:
                bar.update((index + fraction) / len(batches), f"batch {batch}, {text}")

            images = batch_of_photographs(batch, options.size, options.seed)
            share = left / (len(batches) - index)
            settings = _rows.Settings(share, options.rounds, options.pause, options.seed, options.peers)
            document["batches"].append(_rows.measure(network, images, device, settings, progress))
            # What a small batch leaves of its share is the next one's.
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
        print(f"benchmarks.inference: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
    print(_environment.headline(document["environment"]))
    print(f"baseline: {document['baseline']}\nweights: {document['weights']}\n")
    for result in document["batches"]:
        name = f"{options.model}, batch {result['batch']}, {options.size} x {options.size}, {result['rounds']} rounds"
        _rows.show(result, name)
    folder = Path(options.out)
    target = Path(options.json) if options.json else folder / "inference.json"
    _report.write_json(target, document)
    missing = _rows.chart(folder / "inference.png", document)
    print(f"written: {target}" + (f"; {missing}" if missing else f" and {folder / 'inference.png'}"))
    wrong = [text for result in document["batches"] for text in _rows.failures(result)]
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
