"""Tunes the convolutions of a model on the GPU at hand and writes what was fastest to the tables.

    python -m fused_resnet.tuner [--model resnet50] [--batch 1 32 256] [--size 224] [--dtype bfloat16]

Each candidate runs through the public op and is timed with triton.testing.do_bench, median; one that is further from
float64 than rounding explains, on the first two images, is reported and left out.  Exits with 1 where there is no GPU
to tune on.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

import torch

from .._version import __version__
from ..ops import use_backend
from ..tuning.tables import table_path, write_table
from .measure import DTYPES, OP, refusal, shapes_of, tune


def _commit() -> str:
    """The commit of the working tree this runs from, or the package's version where it is not one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or f"fused_resnet {__version__}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fused_resnet.tuner", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["resnet50"], help="builders of fused_resnet")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args(arguments)
    reason = refusal()
    if reason is not None:
        print(f"fused_resnet.tuner: {reason}", file=sys.stderr)
        return 1
    if options.dtype in ("float32", "tfloat32"):
        torch.backends.cudnn.allow_tf32 = options.dtype == "tfloat32"
    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    provenance = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }
    asked = [(model, batch) for model in options.model for batch in options.batch]
    shapes = dict.fromkeys(shape for model, batch in asked for shape in shapes_of(model, batch, options.size))
    with use_backend("triton"):
        for index, shape in enumerate(shapes):
            best, microseconds = tune(shape, arch, options.dtype)
            tile = None if best.tile is None else best.tile.as_dict()
            entry = {"algorithm": best.algorithm, "tile": tile, "microseconds": round(microseconds, 2)} | provenance
            write_table(OP, arch, {(options.dtype, shape.key()): entry})
            print(f"{index + 1}/{len(shapes)} {shape}: {best.algorithm}, {microseconds:.1f} us", flush=True)
    print(f"wrote {table_path(OP, arch)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
