"""Tables and pictures of what `make gpu` measured.

    python -m benchmarks.gpu.report benchmarks/results/gpu/nvidia-h200.json            # every table, and the pictures
    python -m benchmarks.gpu.report benchmarks/results/gpu/*.json --readme             # the README's tables, in place

A cell that was not measured says so; a ratio is only taken between rows of one interleaved measurement.
Exit status: 0; 2 when a file cannot be used, or the README has no place for the tables.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..record import report
from ..record.environment import ROOT
from . import tables as gpu_tables
from .results import ResultsError
from .tables import Measured

BEGIN, END = "<!-- gpu-table:begin -->", "<!-- gpu-table:end -->"
MODELS = ("resnet50", "resnet18")


class ReadmeError(ValueError):
    """A README without one place for the tables; the message says what to put in."""


def where(path: Path) -> str:
    """A path as the README links to it: relative to the checkout where it lies in it."""
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT)) if resolved.is_relative_to(ROOT) else path.name


def short(measured: Measured) -> str:
    """What the README shows of one device: where, when, which commit, a summary a model, the tests."""
    lines = [*(f"- {line}" for line in measured.provenance())]
    parts = ["\n".join([f"**{measured.device}** ([raw samples]({where(measured.path)}))", "", *lines])]
    parts += [gpu_tables.summary(measured, model) for model in MODELS]
    parts.append(f"{gpu_tables.ceilings(measured)} {gpu_tables.tests(measured)}")
    return "\n\n".join(parts)


def long(measured: Measured) -> str:
    """Every table of one device."""
    parts = [short(measured)]
    for part in ("inference", "training"):
        for name in measured.part(part):
            if "/b" in name:
                parts.append(gpu_tables.comparison(measured, part, name))
    parts += [gpu_tables.layers(measured), gpu_tables.micro(measured)]
    failed = [f"- {name}: {row['status']}" for name, row in sorted(measured.failed.items())]
    parts += ["Failed:\n\n" + "\n".join(failed)] if failed else []
    left = measured.runs[-1]["left_out"]
    parts += ["Left out of the last run:\n\n" + "\n".join(f"- {k}: {v}" for k, v in left.items())] if left else []
    return "\n\n".join(part for part in parts if part)


def inserted(readme: str, tables: str) -> str:
    """The README with `tables` between its markers.

    Raises:
        ReadmeError: it does not have each marker once, the first before the second.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ReadmeError(f"it must hold {BEGIN} and, behind it, {END}, each once: put them where the tables belong")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def pictures(measured: Measured, folder: Path) -> list[str]:
    """A PNG of bars for each part and model that was compared; what was written, or why nothing was."""
    said = []
    for part in ("inference", "training"):
        for model in MODELS:
            panels = {}
            for batch in gpu_tables.BATCHES[part]:
                figures = measured.figures(part, gpu_tables.name_of(part, model, batch))
                ranked = sorted(figures.values(), key=lambda row: row["median_ms"])
                bars = [
                    report.Bar(r["label"], r["median_ms"], r["p10_ms"], r["p90_ms"], gpu_tables.is_ours(r["label"]))
                    for r in ranked
                ]
                if bars:
                    panels[f"batch {batch}"] = bars
            if panels:
                target = folder / f"{measured.path.stem}-{part}-{model}.png"
                title = f"{gpu_tables.TITLES[model]}, {part}, {measured.device}"
                missing = report.bar_chart(target, title, panels, "; ".join(measured.provenance()))
                said.append(missing or f"written: {target}")
    return said or ["no picture: no comparison was measured"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = arguments.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="what `make gpu` wrote")
    add(
        "--readme", type=Path, nargs="?", const=ROOT / "README.md", help="write the tables into it (default: README.md)"
    )
    add("--pictures", type=Path, metavar="FOLDER", help="for the PNGs (default: beside the first file)")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        measured = [Measured(path) for path in options.files]
        if options.readme:
            text = inserted(options.readme.read_text(), "\n\n".join(short(one) for one in measured))
            options.readme.write_text(text)
            print(f"written: {options.readme}")
        else:
            print("\n\n".join(long(one) for one in measured))
        for one in measured:
            print(*pictures(one, options.pictures or options.files[0].parent), sep="\n")
    except (ResultsError, ReadmeError, OSError) as error:
        what = f"{options.readme}: " if isinstance(error, ReadmeError) else ""
        print(f"benchmarks.gpu.report: {what}{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
