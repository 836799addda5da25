"""Lower bounds of inference time from floating-point operations and memory traffic, for three degrees of fusion.

    python -m benchmarks.roofline             # all ten models, bfloat16, batch 256, an H200's ceilings
    python -m benchmarks.roofline --model resnet50 --batch 8 --itemsize 4 --tflops 0.15 --tbs 0.02

A kernel takes at least max(operations / peak, bytes / bandwidth); a network at least the sum over its kernels.
Operations are those of convolutions and matrix products; bytes count every tensor a kernel reads or writes once, so
caches that are too small, halos read twice, launches and per-channel vectors are not in the bound.
Weights are read once per batch.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

import fused_resnet
from fused_resnet.models import TORCHVISION_MODELS

from .record import environment, report
from .subjects.graph import FUSIONS, Kernel, kernels, steps

# Measured on one H200: dense bfloat16 matrix product, and device-to-device copy (bytes read plus written).
H200_TFLOPS, H200_TBS = 790.0, 4.3


def bound(parts: list[Kernel], batch: int, itemsize: int, tflops: float, tbs: float) -> dict[str, float]:
    """Per image: GFLOP, megabytes, microseconds, images/s, and the share of time in which memory is the limit."""
    compute = [part.flops / (tflops * 1e12) for part in parts]
    memory = [part.bytes(itemsize) / (tbs * 1e12) for part in parts]
    seconds = sum(map(max, compute, memory))
    return {
        "kernels": len(parts),
        "gflop": sum(part.flops for part in parts) / batch / 1e9,
        "megabytes": sum(part.bytes(itemsize) for part in parts) / batch / 1e6,
        "microseconds": seconds / batch * 1e6,
        "images_per_s": batch / seconds,
        "memory_bound_share": sum(m for c, m in zip(compute, memory, strict=True) if m >= c) / seconds,
    }


def bounds(model: str, batch: int, size: int, itemsize: int, tflops: float, tbs: float) -> dict[str, dict[str, float]]:
    """`bound` of a fused_resnet builder for each degree of fusion."""
    with torch.device("meta"):
        network = getattr(fused_resnet, model)()
    found = steps(network, batch, size)
    return {fusion: bound(kernels(found, fusion), batch, itemsize, tflops, tbs) for fusion in FUSIONS}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, every = arguments.add_argument, list(TORCHVISION_MODELS)
    add(
        "--model",
        nargs="+",
        choices=every,
        default=every,
        metavar="MODEL",
        help=f"of {', '.join(every)} (default: all)",
    )
    add("--batch", type=int, default=256, help="images over which a read of the weights is shared (default: 256)")
    add("--size", type=int, default=224, help="side of the square input in pixels (default: 224)")
    add("--itemsize", type=int, default=2, choices=(2, 4, 8), help="bytes per element (default: 2, bfloat16)")
    add("--tflops", type=float, default=H200_TFLOPS, help="peak TFLOP/s (default: an H200's in bfloat16)")
    add("--tbs", type=float, default=H200_TBS, help="peak TB/s, read plus written (default: an H200's)")
    add("--json", help="write the figures to this file")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 2 for an argument that cannot be used."""
    options = parser().parse_args(argv)
    if min(options.batch, options.tflops, options.tbs) <= 0 or options.size < 32:
        expected = "--batch, --tflops and --tbs above 0 and --size of at least 32"
        print(f"benchmarks.roofline: expected {expected}", file=sys.stderr)
        return 2
    table, models = [], {}
    for model in options.model:
        models[model] = bounds(model, options.batch, options.size, options.itemsize, options.tflops, options.tbs)
        for fusion, figures in models[model].items():
            table.append(
                [
                    f"{model} {fusion}",
                    str(figures["kernels"]),
                    f"{figures['gflop']:.2f}",
                    f"{figures['megabytes']:.2f}",
                    f"{figures['microseconds']:.2f}",
                    f"{figures['images_per_s']:.0f}",
                    f"{100 * figures['memory_bound_share']:.0f} %",
                    f"{models[model]['eager']['microseconds'] / figures['microseconds']:.2f}x",
                ]
            )
    ceilings = f"{options.itemsize} bytes/element, {options.tflops:g} TFLOP/s, {options.tbs:g} TB/s"
    title = f"Inference bounds per image: batch {options.batch}, {options.size} x {options.size}, {ceilings}"
    columns = ["model and fusion", "kernels", "GFLOP", "MB", "us", "images/s", "memory-bound", "vs eager"]
    report.show_table(title, columns, table, ["GFLOP counts a multiply-add as two operations."])
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "model")}
        report.write_json(
            options.json,
            {
                "schema": 1,
                "benchmark": "roofline",
                "options": settings,
                "commit": environment.commit(),
                "models": models,
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
