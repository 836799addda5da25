"""`python -m fused_resnet.parity`: compare a model with torchvision's, as a check for a user's CI.

Exit status: 0 when every stage passes, 1 when one fails (each is named), 2 when the comparison could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import torch

from .. import models
from ..backends import BACKENDS
from .check import check_model

# float64 is what the others are judged by; nothing is left to judge it with
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fused_resnet.parity",
        description="Compares a model with torchvision's, stage by stage, both against float64.",
        epilog="Exit status: 0 all passed, 1 a stage failed, 2 the comparison could not be made.",
    )
    parser.add_argument("--model", default="resnet50", help="a builder's name (default: resnet50)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--backend", default="auto", help=f"auto (default), {', '.join(BACKENDS)}")
    parser.add_argument("--weights", help="as the builder takes it: a name such as DEFAULT, or a local file")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, help="height and width of the images (default: 224, CIFAR models 32)")
    parser.add_argument("--frozen", action="store_true", help="compare fused_resnet.freeze(model)")
    parser.add_argument("--json", metavar="FILE", help="also write the report there")
    parser.add_argument("--list", action="store_true", help="print the names of the models and stop")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _arguments(argv)
    if options.list:
        print("\n".join((*models.TORCHVISION_MODELS, *models.CIFAR_MODELS)))
        return 0
    try:
        report = check_model(
            options.model,
            options.device,
            DTYPES[options.dtype],
            options.backend,
            options.weights,
            options.batch,
            options.size,
            options.frozen,
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"could not compare: {error}", file=sys.stderr)
        return 2
    print(report)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report.as_dict(), file, indent=1)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
