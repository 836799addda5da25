"""Tables of a `make gpu` file as Markdown.  A ratio is only ever taken between two rows of one measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .results import ResultsError, at_most, device_name, read

NOT_MEASURED = "not measured"
AMP = {
    "inference": "torchvision channels_last amp",
    "training": "torchvision channels_last amp bfloat16",
}
COMPILED = {
    "inference": "torchvision channels_last bf16 compile max-autotune",
    "training": "torchvision channels_last amp bfloat16 compile max-autotune",
}
OURS = "fused_resnet"
BATCHES = {"inference": (1, 32, 256), "training": (256,)}
TITLES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50"}


class Measured:
    """The newest good row of each name in a file, and where it was measured.

    Raises:
        ResultsError: the file is none of `make gpu`'s, or was not measured on a GPU.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.document = path, read(path)
        self.runs = self.document["runs"]
        for run in self.runs:
            if device_name(run["environment"]) == "cpu":
                raise ResultsError(f"{path} was measured on a CPU, to try the runner out: it is no result of a GPU")
        self.rows: dict[str, dict] = {}
        self.failed: dict[str, dict] = {}
        for row in sorted(self.document["rows"], key=lambda row: row["run"]):
            name = f"{row['part']}/{row['name']}"
            good = row["status"] == "ok"
            (self.rows if good else self.failed)[name] = row
            if good:  # an older failure of what works now is history; a newer one stands beside the older figure
                self.failed.pop(name, None)

    @property
    def device(self) -> str:
        return device_name(self.runs[-1]["environment"])

    def part(self, part: str) -> dict[str, dict]:
        """The rows of a part by name."""
        return {row["name"]: row for row in self.rows.values() if row["part"] == part}

    def figures(self, part: str, name: str) -> dict[str, dict]:
        """The candidates of a comparison that were timed and right, by label; none where it was not measured."""
        rows = self.rows.get(f"{part}/{name}", {}).get("rows", [])
        return {row["label"]: row for row in rows if "median_ms" in row and is_right(row)}

    def provenance(self) -> list[str]:
        """One line a run that a row comes from: device, driver, libraries, commit, date."""
        used = sorted({row["run"] for row in (*self.rows.values(), *self.failed.values())})
        return [_provenance(self.runs[index]["environment"]) for index in used]


def is_right(row: dict) -> bool:
    """Whether a candidate computed what it should: a wrong result has no time worth showing."""
    if "error" in row and not at_most(row["error"]["relative_rms"], row["limit"]):
        return False
    return row.get("loss_is_finite") is not False


def _provenance(environment: dict) -> str:
    gpu, versions, commit = environment["gpu"], environment["versions"], environment["commit"]
    state = next((value for name, value in gpu.items() if name.startswith("driver_version")), "") or ""
    driver = state.split(",")[0] or "unknown"
    sha = commit["sha"][:10] + (" with changes" if commit["dirty"] else "") if commit["sha"] else "unknown"
    libraries = f"torch {versions['torch']}, torchvision {versions['torchvision']}, cuDNN {gpu['cudnn']}"
    return f"{gpu['name']}, driver {driver}, {libraries}; commit {sha}; {environment['date'][:10]}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column left-aligned, the others right-aligned."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def milliseconds(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def ratio(above: float | None, below: float | None) -> str:
    """How many times `below` goes into `above`; both must come from one measurement."""
    return NOT_MEASURED if above is None or not below else f"{above / below:.2f}x"


def is_ours(label: str) -> bool:
    return label.startswith(OURS)


def fastest(figures: dict[str, dict]) -> str | None:
    """The label of our fastest row."""
    return min(filter(is_ours, figures), key=lambda label: figures[label]["median_ms"], default=None)


def _ms(figures: dict[str, dict], label: str | None) -> float | None:
    return figures[label]["median_ms"] if label in figures else None


def name_of(part: str, model: str, batch: int, compiled: bool = False) -> str:
    """The name of a comparison's row."""
    return f"{model}/b{batch}{'/compile' if compiled else ''}"


SUMMARY = (
    "torchvision AMP",
    "in a CUDA graph",
    "torch.compile max-autotune",
    "fused_resnet",
    "against AMP",
    "against the graph",
    "against torch.compile",
)


def summary(measured: Measured, model: str) -> str:
    """Inference at each batch and the training step: milliseconds, and our fastest row's ratios to three others."""
    lines = []
    for part in ("inference", "training"):
        for batch in BATCHES[part]:
            plain = measured.figures(part, name_of(part, model, batch))
            beside = measured.figures(part, name_of(part, model, batch, compiled=True))
            best, best_beside = fastest(plain), fastest(beside)
            amp, graph = _ms(plain, AMP[part]), _ms(plain, f"{AMP[part]} graph")
            ours, compiled = _ms(plain, best), _ms(beside, COMPILED[part])
            what = f"inference, batch {batch}" if part == "inference" else f"training step, batch {batch}"
            mine = NOT_MEASURED if best is None else f"{milliseconds(ours)} ({best.removeprefix(OURS).strip()})"
            cells = [*map(milliseconds, (amp, graph, compiled)), mine, ratio(amp, ours), ratio(graph, ours)]
            lines.append([what, *cells, ratio(compiled, _ms(beside, best_beside))])
    lines.append(["peak memory of the step, MiB", *peak_memory(measured, model)])
    return markdown([f"{TITLES.get(model, model)}, bfloat16, ms", *SUMMARY], lines)


def peak_memory(measured: Measured, model: str) -> list[str]:
    """The summary's cells of memory: eager's and the least of ours, both called, from one measurement."""
    figures = measured.figures("training", name_of("training", model, BATCHES["training"][0]))
    eager = figures.get(AMP["training"], {}).get("peak_MiB")
    ours = min(
        (row["peak_MiB"] for label, row in figures.items() if is_ours(label) and "peak_MiB" in row), default=None
    )
    cell = [NOT_MEASURED if value is None else f"{value:,.0f}" for value in (eager, ours)]
    share = NOT_MEASURED if not eager or ours is None else f"{ours / eager:.2f} of it"
    return [cell[0], "", "", cell[1], share, "", ""]


def comparison(measured: Measured, part: str, name: str) -> str | None:
    """Every row of one measurement, fastest first; None where it was not made."""
    row = measured.rows.get(f"{part}/{name}")
    if row is None:
        return None
    figures = measured.figures(part, name)
    amp = _ms(figures, AMP[part])
    lines = []
    for label in sorted(figures, key=lambda label: figures[label]["median_ms"]):
        one = figures[label]
        error = one.get("error", {}).get("relative_rms")
        spread = f"{milliseconds(one['p10_ms'])} to {milliseconds(one['p90_ms'])}"
        lines.append(
            [
                label,
                milliseconds(one["median_ms"]),
                spread,
                f"{one['images_per_s']:,.0f}",
                ratio(amp, one["median_ms"]),
                NOT_MEASURED if error is None else f"{error:.1e}",
                f"{one['peak_MiB']:,.0f}" if "peak_MiB" in one else NOT_MEASURED,
            ]
        )
    for one in row["rows"]:
        if one["label"] not in figures:
            reason = one["status"] if one["status"] != "ok" else "wrong result"
            lines.append([f"{one['label']}: {reason}", *[NOT_MEASURED] * 6])
    columns = ("", "median ms", "10th to 90th", "images/s", "against AMP", "relative RMS error", "peak MiB")
    return markdown([f"{part}, {name}", *columns[1:]], lines)


def layers(measured: Measured) -> str | None:
    """Microseconds of each convolution: cuDNN's kernel and the fastest of ours, pass by pass."""
    rows = measured.part("layers")
    if not rows:
        return None
    passes = ("inference", "fprop", "dgrad", "wgrad")
    lines = []
    for row in rows.values():
        cells = []
        for name in passes:
            times = {k: v["median_ms"] for k, v in row["passes"].get(name, {}).items() if "median_ms" in v}
            ours = {k: v for k, v in times.items() if k not in ("cudnn", "eager channels_last")}
            best = min(ours, key=ours.get, default=None)
            if best is None or "cudnn" not in times:
                cells.append(NOT_MEASURED)
                continue
            both = f"{1e3 * times['cudnn']:.0f} / {1e3 * ours[best]:.0f}"
            cells.append(f"{both} ({ratio(times['cudnn'], ours[best])}, {best})")
        lines.append([row["layer"], *cells])
    return markdown(["µs, cuDNN's bare kernel / ours with what is fused to it", *passes], lines)


def ceilings(measured: Measured) -> str:
    """The measured copy bandwidth and matrix rate."""
    rows = measured.part("baselines")
    copy, matmul = rows.get("ceilings/copy"), rows.get("ceilings/matmul_bf16")
    bandwidth = NOT_MEASURED if copy is None else f"{copy['tbs']:.2f} TB/s read plus written"
    product = NOT_MEASURED if matmul is None else f"{matmul['tflops']:.0f} TFLOP/s"
    return f"Copy: {bandwidth}; bfloat16 matrix product: {product}."


def micro(measured: Measured) -> str | None:
    """The answers of the micro-tests."""
    rows = {**measured.part("micro"), **{r["name"]: r for r in measured.failed.values() if r["part"] == "micro"}}
    if not rows:
        return None
    lines = [[name, row.get("answer", "error"), row.get("detail", row["status"])] for name, row in sorted(rows.items())]
    return markdown(["micro-test", "answer", "detail"], lines)


def tests(measured: Measured) -> str:
    """What ran on the device, in a sentence."""
    rows = [row for row in (*measured.rows.values(), *measured.failed.values()) if row["part"] == "tests"]
    counted = [row for row in rows if "passed" in row]
    if not counted:
        return f"Tests on the device: {NOT_MEASURED}."
    sums = {key: sum(row[key] for row in counted if "tool" not in row) for key in ("passed", "failed", "skipped")}
    text = f"Tests on the device: {sums['passed']} passed, {sums['failed']} failed, {sums['skipped']} skipped."
    for row in counted:
        if "tool" in row:
            text += f" compute-sanitizer {row['name']}: {row['errors']} errors over {row['passed']} tests."
    return text
