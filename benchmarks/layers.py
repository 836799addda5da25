"""Every distinct convolution of a ResNet with what follows it: fused, against PyTorch eager and the roofline.

    python -m benchmarks.layers                                   # ResNet-18 and ResNet-50, batch 8 (CPU) or 256 (GPU)
    python -m benchmarks.layers --model resnet50 --batch 1 --json layers.json

Eager is ATen's convolution, batch norm, add and ReLU one after the other, in the default layout and in channels_last;
`frozen` is one convolution of `fused_resnet.freeze`'s.  The roofline's ceilings are measured first.
Exit status: 0; 1 when one of our rows failed or differs from eager; 2 when an argument cannot be used.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

import fused_resnet
from fused_resnet import BackendError, use_backend
from fused_resnet.models import TORCHVISION_MODELS
from fused_resnet.ops import dispatch

from .meters import timing
from .meters.ceilings import ceilings
from .record import environment, report
from .subjects.graph import kernels, steps
from .subjects.layer import Layer, choose_backend, eager_calls, our_calls, relative_error

# Relative RMS difference from eager above which a fused row is wrong; the sums are the same but for their order.
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
TF32_LIMIT = 3e-3
METHOD = (
    "Interleaved, as in benchmarks.inference. Each call repeats on the same tensors, so what fits a cache stays there. "
    "bound = max(operations / peak, bytes / bandwidth), with the peak of a large matrix product and the bandwidth of a "
    "large copy; a layer whose maps stay in a cache, or an algorithm with fewer operations, may go below it."
)


def layers_of(models: Sequence[str], batch: int, size: int) -> dict[Layer, dict[str, int]]:
    """The distinct fused convolutions of some models, and how often each occurs in which model."""
    found: dict[Layer, dict[str, int]] = {}
    for model in models:
        with torch.device("meta"):
            network = getattr(fused_resnet, model)()
        for kernel in kernels(steps(network, batch, size), "conv-fused"):
            if kernel.steps[0].kind == "conv":
                counts = found.setdefault(Layer.of(kernel), dict.fromkeys(models, 0))
                counts[model] += 1
    return found


def measure(layer: Layer, device: torch.device, dtype: torch.dtype, seconds: float, rounds: int) -> list[dict]:
    """One row per way of running `layer`, with its time and its relative RMS difference from eager."""
    data = layer.tensors(device, dtype)
    eager, ours = eager_calls(layer, data), our_calls(layer, data)
    expected = eager["eager"]().float()
    tf32 = device.type == "cuda" and dtype is torch.float32 and torch.backends.cudnn.allow_tf32
    rows, calls = [], {}
    for name, call in {**eager, **ours}.items():
        row = {"label": name, "ours": name in ours, "status": "ok", "limit": TF32_LIMIT if tf32 else LIMITS[dtype]}
        rows.append(row)
        try:
            choose_backend(name)
            row["relative_rms"] = relative_error(call(), expected)
            call()
        except Exception as error:  # a row that cannot run is reported as such, and the others still run
            row["status"] = f"error: {timing.describe(error)}"
            continue
        calls[name] = call
    timed = timing.interleave(
        calls,
        seconds=seconds,
        timer=timing.timer_for(device),
        min_rounds=min(3, rounds),
        max_rounds=rounds,
        before=choose_backend,
    )
    for row in rows:
        if row["label"] in timed.errors:
            row["status"] = f"error: {timed.errors[row['label']]}"
        elif row["label"] in calls:
            row.update(timing.summary(timed.samples[row["label"]]))
    return rows


def failures(results: list[dict]) -> list[str]:
    """Our rows that did not run or do not agree with eager."""
    found = []
    for result in results:
        for row in result["rows"]:
            if row["ours"] and row["status"] != "ok":
                found.append(f"{result['layer']}, {row['label']}: {row['status']}")
            elif row["ours"] and not row["relative_rms"] <= row["limit"]:
                seen = f"{row['relative_rms']:.1e}"
                found.append(
                    f"{result['layer']}, {row['label']}: differs from eager by {seen}, limit {row['limit']:.0e}"
                )
    return found


def totals(results: list[dict], model: str) -> dict[str, float]:
    """Milliseconds of all of a model's convolutions, per way of running them; only ways that ran every one of them."""
    own = [result for result in results if result["count"][model]]
    every = [{row["label"]: row["median_ms"] for row in result["rows"] if "median_ms" in row} for result in own]
    ran = set.intersection(*map(set, every))
    found = {
        label: sum(result["count"][model] * medians[label] for result, medians in zip(own, every, strict=True))
        for label in every[0]
        if label in ran
    }
    return {**found, "bound": sum(result["count"][model] * result["bound_ms"] for result in own)}


def show(document: dict[str, object]) -> None:
    """The table: a line per layer, then the sum over each model."""
    labels = list(dict.fromkeys(row["label"] for result in document["layers"] for row in result["rows"]))
    ours = {row["label"] for result in document["layers"] for row in result["rows"] if row["ours"]}

    def line(name: str, times: str, medians: dict[str, float], bound: float) -> list[str]:
        fastest = min((medians[label] for label in ours if label in medians), default=None)
        reference = medians.get("eager channels_last")
        speedup = reference / fastest if fastest and reference else None
        reached = 100 * bound / fastest if fastest else None
        cells = [report.number(medians.get(label), 3) for label in labels]
        return [name, times, *cells, report.number(speedup, 2, "x"), f"{bound:.3f}", report.number(reached, 0, " %")]

    table = []
    for result in document["layers"]:
        medians = {row["label"]: row["median_ms"] for row in result["rows"] if "median_ms" in row}
        times = "/".join(str(count) for count in result["count"].values())
        table.append(line(result["layer"], times, medians, result["bound_ms"]))
    for model, medians in document["totals"].items():
        table.append(line(f"all of {model}", "", medians, medians["bound"]))
    limits = document["ceilings"]
    title = (
        f"Convolutions of {', '.join(document['models'])}, batch {document['batch']}, {document['dtype']}: median ms; "
        f"ceilings {1e3 * limits['tflops']:.0f} GFLOP/s, {1e3 * limits['tbs']:.1f} GB/s"
    )
    columns = ["convolution", "count", *labels, "speedup", "bound", "of bound"]
    notes = ["speedup: eager channels_last / the fastest of ours; of bound: bound / the fastest of ours."]
    report.show_table(title, columns, table, [*notes, *document["left_out"], *beyond(document["layers"])])


def beyond(results: list[dict]) -> list[str]:
    """A warning, where rows are faster than their bound allows."""
    faster = [
        f"{result['layer']}, {row['label']}"
        for result in results
        for row in result["rows"]
        if row.get("median_ms", math.inf) < result["bound_ms"]
    ]
    if not faster:
        return []
    return [
        f"WARNING: {len(faster)} rows are faster than their bound, {faster[0]} for one: the ceilings were measured on a"
        " busy machine, the maps stay in a cache, or an algorithm multiplies less. Their share of it says nothing."
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.layers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    names = ", ".join(TORCHVISION_MODELS)
    models = ["resnet18", "resnet50"]
    add("--model", nargs="+", choices=TORCHVISION_MODELS, default=models, metavar="MODEL", help=f"of {names}")
    add("--batch", type=int, help="images (default: 8 on a CPU, 256 on a GPU)")
    add("--size", type=int, default=224, help="side of the square input in pixels (default: 224)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="default: float32 on a CPU, bfloat16 on a GPU")
    add("--seconds", type=float, default=90.0, help="time for all rounds together (default: 90)")
    add("--rounds", type=int, default=50, help="at most this many rounds per convolution (default: 50)")
    add("--ceiling-scale", type=float, default=1.0, help="shrink the matrix and the copy that measure the ceilings")
    add("--json", help="write every raw sample to this file")
    add("--quiet", action="store_true", help="no progress bar")
    return arguments


def run(options: argparse.Namespace, progress: Callable[[float, str], None]) -> dict[str, object]:
    """Measure everything that was asked for; the document that becomes the JSON file."""
    device = environment.resolve_device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    batch = options.batch if options.batch is not None else (256 if device.type == "cuda" else 8)
    if batch < 1 or options.rounds < 1 or options.size < 32 or options.seconds < 0 or options.ceiling_scale <= 0:
        raise ValueError("expected --batch and --rounds of at least 1, --size of at least 32, --ceiling-scale above 0")
    progress(0.0, "ceilings")
    limits = ceilings(device, dtype, min(4.0, options.seconds), options.ceiling_scale)
    found = layers_of(options.model, batch, options.size)
    results = []
    for index, (layer, counts) in enumerate(found.items()):
        progress(index / len(found), str(layer))
        bound = max(layer.flops / limits["tflops"], layer.bytes(dtype.itemsize) / limits["tbs"]) / 1e9
        rows = measure(layer, device, dtype, options.seconds / len(found), options.rounds)
        results.append({"layer": str(layer), "count": counts, "flops": layer.flops, "bound_ms": bound, "rows": rows})
    return {
        "schema": 1,
        "benchmark": "layers",
        "models": list(options.model),
        "batch": batch,
        "size": options.size,
        "dtype": str(dtype).removeprefix("torch."),
        "environment": environment.environment(device),
        "method": METHOD,
        "ceilings": limits,
        "left_out": Layer.left_out(device, dtype),
        "layers": results,
        "totals": {model: totals(results, model) for model in options.model},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    benchmark, backend = torch.backends.cudnn.benchmark, dispatch.current()
    try:
        torch.backends.cudnn.benchmark = True
        with ExitStack() as left, report.Progress("layers", options.quiet) as bar, torch.inference_mode():
            # Each row asks for its own backend on the way, before it is timed.
            use_backend(backend)
            left.callback(use_backend, backend)
            document = run(options, bar.update)
    except (ValueError, BackendError) as error:
        print(f"benchmarks.layers: {error}", file=sys.stderr)
        return 2
    finally:
        torch.backends.cudnn.benchmark = benchmark
    print(environment.headline(document["environment"]), end="\n\n")
    show(document)
    if options.json:
        report.write_json(options.json, document)
    wrong = failures(document["layers"])
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
