"""Tables (rich where installed, plain text elsewhere), progress, JSON files and bar charts."""

import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HAVE_RICH = importlib.util.find_spec("rich") is not None
PLAIN_WIDTH = 160  # a pipe or a log has no width of its own; wide enough for every table here


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A figure for a table; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}{unit}" if math.isfinite(value) else str(value)


def scientific(value: float | None) -> str:
    """An error for a table: two significant digits; a dash where there is none."""
    return "-" if value is None else f"{value:.1e}"


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """The table as text: the first column left-aligned, the others right-aligned."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [str(cell).rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([str(cells[0]).ljust(widths[0]), *padded[1:]]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([title, rule, line(columns), rule, *map(line, rows), rule, *notes])


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table to standard output."""
    if not HAVE_RICH:
        print(plain_table(title, columns, rows, notes), end="\n\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    console.print(table)
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    console.print()


class Progress:
    """A progress bar on standard error: `with Progress("inference") as bar: bar.update(0.3, "batch 8, round 4")`."""

    def __init__(self, title: str, quiet: bool = False):
        self.title, self.quiet = title, quiet
        self.bar = self.task = None
        self.shown = -1

    def __enter__(self) -> "Progress":
        if HAVE_RICH and not self.quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self.bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.task = self.bar.add_task(self.title, total=1.0)
            self.bar.start()
        return self

    def update(self, fraction: float, text: str) -> None:
        """Show that `fraction` (0 to 1) of the work is done and `text` is going on."""
        if self.quiet:
            return
        if self.bar:
            self.bar.update(self.task, completed=fraction, description=f"{self.title}: {text}")
            return
        filled = round(20 * fraction)
        line = f"{self.title} [{'#' * filled}{'.' * (20 - filled)}] {100 * fraction:3.0f} % {text}"
        if sys.stderr.isatty():
            print(f"\r{line[:100]:<100}", end="", file=sys.stderr, flush=True)
        elif filled != self.shown:  # a log gets a line per twentieth, not one per round
            self.shown = filled
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        elif not self.quiet and sys.stderr.isatty():
            print("\r" + " " * 100 + "\r", end="", file=sys.stderr, flush=True)


def write_json(path: str | Path, document: dict[str, object]) -> None:
    """Write a document as JSON, making the folder; NaN and Inf become null, as JSON has neither."""

    def finite(value: object) -> object:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(entry) for entry in value]
        return value

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, in milliseconds; ours stand out from the others."""

    label: str
    median: float
    low: float
    high: float
    ours: bool


def bar_chart(path: str | Path, title: str, panels: dict[str, list[Bar]], footer: str = "") -> str | None:
    """One panel of horizontal bars per key, as a PNG.

    Returns None when it was drawn, or a sentence saying why not.
    """
    try:
        import matplotlib
    except ImportError:
        return "no chart: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    longest = max(len(bars) for bars in panels.values())
    figure, axes = pyplot.subplots(1, len(panels), figsize=(7 * len(panels), 1.6 + 0.42 * longest), squeeze=False)
    for axis, (name, bars) in zip(axes[0], panels.items(), strict=True):
        medians = [bar.median for bar in bars]
        spread = [[bar.median - bar.low for bar in bars], [bar.high - bar.median for bar in bars]]
        colours = ["#2a6f97" if bar.ours else "#b8c0c8" for bar in bars]
        axis.barh(range(len(bars)), medians, xerr=spread, color=colours, ecolor="#555555", capsize=2)
        for place, bar in enumerate(bars):  # behind the whisker
            style = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            axis.annotate(f"{bar.median:.1f}", (max(bar.median, bar.high), place), xytext=(5, 0), **style)
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlabel("milliseconds per call (median; whiskers: 10th to 90th percentile)", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.text(0.01, 0.005, footer, fontsize=6, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return None
