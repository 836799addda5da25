"""How a bottleneck's training step flows: its ops in order, the maps that each reads and writes, and eager's beside.

    python -m benchmarks.flow [--out benchmarks/results/bottleneck-step.svg]

Counted as `python -m benchmarks.traffic` counts, from shapes alone, for a bottleneck inside a chain of its like; T is
one map of the block's own width, and an op that is called twice is one box with the sums of both.  Ops on vectors and
weights alone, which move no map, are a number below.
"""

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

from . import traffic
from .subjects.pairs import CASES, counting

OUT = Path("benchmarks/results/bottleneck-step.svg")
ROW, BOX, ARROW, MARGIN = 30, 250, 70, 20  # pixels: a row's height, a box's and an arrow's width, what is left around
COLUMN = 2 * ARROW + BOX + 2 * MARGIN
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .head { font-weight: 600; font-size: 15px }
  .forward { fill: #ddf4ff; stroke: #54aeff } .backward { fill: #fff1e5; stroke: #fb8f44 }
  .arrow { stroke: #57606a; fill: none; marker-end: url(#tip) }
"""
NAMES = {"fused_resnet": "fused_resnet", "torchvision": "torchvision eager", "reference": "the modules, eager"}


def ops_of(row: dict, phase: str) -> list[dict]:
    """The ops of one phase of a row of `traffic` that move maps."""
    return [op for op in row["ops"] if op["phase"] == phase and op["moves"] == "maps"]


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def _op(op: dict, x: float, y: float) -> list[str]:
    """A box, with what comes in on its left and what goes out on its right."""
    name = op["op"].partition("::")[2] + (f" x {op['calls']}" if op["calls"] > 1 else "")
    middle, box = y + ROW / 2, x + ARROW
    parts = [
        f'<rect x="{box}" y="{y + 3}" width="{BOX}" height="{ROW - 6}" rx="5" class="{op["phase"]}"/>',
        _text(box + BOX / 2, middle + 4, name),
    ]
    for start, figure in ((x, op["maps_read"]), (box + BOX, op["maps_written"])):
        if figure:
            parts.append(f'<path class="arrow" d="M{start + 4} {middle}h{ARROW - 12}"/>')
            parts.append(_text(start + ARROW / 2 - 4, middle - 4, f"{figure:g}T"))
    return parts


def _column(label: str, row: dict, x: float) -> tuple[list[str], float]:
    """One row of `traffic`, drawn from the top at x, and where it ends."""
    parts, y = [_text(x + ARROW + BOX / 2, 24, NAMES[label], kind="head")], 36.0
    for phase in traffic.PHASES:
        ops = ops_of(row, phase)
        for op in ops:
            parts += _op(op, x, y)
            y += ROW
        others = sum(op["calls"] for op in row["ops"] if op["phase"] == phase) - sum(op["calls"] for op in ops)
        total = f"{phase}: {row[f'{phase}_maps']:g}T"
        parts.append(_text(x + ARROW + BOX / 2, y + 18, f"{total}, and {others} ops on vectors", kind="head"))
        y += ROW + 12
    return parts, y


def drawing(block: dict) -> str:
    """The picture, as SVG, of a block as `traffic.measure_block` gives it."""
    parts, bottom = [], 0.0
    for place, (label, row) in enumerate(block["rows"].items()):
        drawn, end = _column(label, row, MARGIN + place * COLUMN)
        parts, bottom = parts + drawn, max(bottom, end)
    width = 2 * COLUMN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom:g}" width="{width}">',
            f"<title>A training step of a {escape(block['block'])}, in maps of the block's width</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0 0L8 4L0 8z" fill="#57606a"/></marker></defs>',
            f'<rect width="{width}" height="{bottom:g}" fill="white"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def measured() -> dict:
    """The bottleneck inside a chain, counted from shapes."""
    options = traffic.parser().parse_args(["--shapes", "--model"])
    with counting(options):
        return traffic.measure_block(CASES[0], options, torch.device("cpu"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"the picture (default: {OUT})")
    out = parser.parse_args(argv).out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(drawing(measured()))
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
