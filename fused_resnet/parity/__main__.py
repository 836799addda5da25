"""`python -m fused_resnet.parity`: compare models with torchvision's, as a check for a user's CI.

Exit status: 0 when every output passes, 1 when one fails (each is named), 2 when a comparison could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import models
from .._version import __version__
from ..backends import BACKENDS
from .check import check_model
from .report import Report, junit

# float64 is what the others are judged by; nothing is left to judge it with
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fused_resnet.parity",
        description="Compares models with torchvision's, stage by stage: each output must be as near to float64 as"
        " rounding explains.",
        epilog="Exit status: 0 all passed, 1 an output failed, 2 a comparison could not be made.",
    )
    parser.add_argument("--model", nargs="+", default=["resnet50"], help="builders' names (default: resnet50)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--backend", default="auto", help=f"auto (default), {', '.join(BACKENDS)}")
    parser.add_argument("--weights", help="as the builder takes it: a name such as DEFAULT, or a local file")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, help="height and width of the images (default: 224, CIFAR models 32)")
    parser.add_argument("--frozen", action="store_true", help="compare fused_resnet.freeze(model)")
    parser.add_argument("--seed", type=int, default=0, help="of images and random parameters (default: 0)")
    parser.add_argument(
        "--require-torchvision", action="store_true", help="refuse where torchvision, or the model in it, is missing"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the reports there")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="also write them there as JUnit's XML")
    parser.add_argument("--list", action="store_true", help="print the names of the models and stop")
    return parser.parse_args(argv)


def _require_writable(path: Path) -> None:
    """Raises OSError where a report could not be written, before anything has run."""
    existed = path.exists()
    with path.open("a"):
        pass
    if not existed:
        path.unlink()


def _check(name: str, options: argparse.Namespace) -> Report:
    return check_model(
        name,
        options.device,
        DTYPES[options.dtype],
        options.backend,
        options.weights,
        options.batch,
        options.size,
        options.frozen,
        options.seed,
        options.require_torchvision,
    )


def _write(options: argparse.Namespace, reports: list[Report], impossible: dict[str, str], passed: bool) -> None:
    if options.json:
        versions = {"fused_resnet": __version__, "torch": torch.__version__, "python": sys.version.split()[0]}
        document = {
            "passed": passed,
            "versions": versions,
            "reports": [report.as_dict() for report in reports],
            "could_not_compare": impossible,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.junit:
        options.junit.write_text(junit(reports, impossible))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _arguments(argv)
    if options.list:
        print("\n".join((*models.TORCHVISION_MODELS, *models.CIFAR_MODELS)))
        return 0
    try:
        for path in filter(None, (options.json, options.junit)):
            _require_writable(path)
    except OSError as error:
        print(f"could not write the report: {error}", file=sys.stderr)
        return 2
    reports: list[Report] = []
    impossible: dict[str, str] = {}
    for name in dict.fromkeys(options.model):
        try:
            reports.append(_check(name, options))
        except (ValueError, RuntimeError, OSError) as error:
            impossible[name] = str(error)
            print(f"could not compare: {error}", file=sys.stderr)
        else:
            print(reports[-1], flush=True)
    failed = [report for report in reports if not report.passed]
    _write(options, reports, impossible, not failed and not impossible)
    if len(reports) > 1:
        print("\n".join(report.verdict for report in reports))
    return 1 if failed else 2 if impossible else 0


if __name__ == "__main__":
    sys.exit(main())
