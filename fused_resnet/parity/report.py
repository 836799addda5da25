"""What a comparison found: as text, as JSON, as JUnit's XML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from .rule import Row, table


@dataclasses.dataclass(frozen=True)
class Report:
    """One comparison: what was compared with what, the paths that ours took and the rows.

    Attributes:
        baseline: what ours was held against; `substitute` says why that is not torchvision, where it is not.
        images: the shape of the batch, (N, C, H, W).
        paths: how many parts of ours ran on each path, in `explain`'s words.
    """

    model: str
    device: str
    dtype: str
    backend: str
    frozen: bool
    baseline: str
    substitute: str | None
    images: tuple[int, ...]
    seed: int
    runs: int
    paths: dict[str, int]
    rows: list[Row]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def subject(self) -> str:
        return f"{self.model}{' frozen' if self.frozen else ''}"

    @property
    def verdict(self) -> str:
        """One sentence: what was shown, of what, on what, beside what."""
        n, *_, h, w = self.images
        failed = ", ".join(row.name for row in self.rows if not row.passed)
        fused = sum(count for path, count in self.paths.items() if path.startswith("fused"))
        parts = f"{fused} of {sum(self.paths.values())} parts fused" if fused else "no part of it ran fused"
        worst = max(row.share for row in self.rows)
        found = (
            f"FAILED: {failed} of {self.subject}: further from float64 than rounding explains"
            if failed
            else f"passed: {self.subject}: {len(self.rows)} outputs as near to float64 as rounding explains"
        )
        held = self.baseline if self.substitute is None else f"{self.baseline}, NOT torchvision: {self.substitute}"
        return (
            f"{found}, at most {worst:.2g} of the limit; {self.dtype} on {self.device}, backend {self.backend},"
            f" {parts}; {n} image{'s' if n > 1 else ''} of {h} x {w}, seed {self.seed}; held against {held}"
        )

    def __str__(self) -> str:
        paths = ", ".join(f"{count} {path}" for path, count in self.paths.items())
        lines = [
            f"fused_resnet.{self.subject} against {self.baseline}: {self.dtype} on {self.device},"
            f" backend {self.backend}",
            f"paths: {paths}",
            f"errors against float64, relative to each output's RMS; of rounding: the baseline's, over {self.runs} runs"
            " with every rounding disturbed",
            table(self.rows),
            self.verdict,
        ]
        return "\n".join(lines)

    def as_dict(self) -> dict:
        rows = [
            # JSON knows no infinity
            dataclasses.asdict(row) | {"share": row.share if math.isfinite(row.share) else None, "passed": row.passed}
            for row in self.rows
        ]
        return dataclasses.asdict(self) | {"rows": rows, "passed": self.passed, "verdict": self.verdict}


def junit(reports: Sequence[Report], impossible: Mapping[str, str]) -> str:
    """The reports as JUnit's XML: a suite for each model, a case for each output; `impossible`: models that could not
    be compared, and why."""
    root = ElementTree.Element("testsuites", name="fused_resnet.parity")
    for report in reports:
        failures = sum(not row.passed for row in report.rows)
        suite = _suite(root, report.subject, len(report.rows), failures=failures)
        for row in report.rows:
            case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{report.subject}", name=row.name)
            if not row.passed:
                failure = ElementTree.SubElement(case, "failure", message=f"{row.share:.3g} times the limit")
                failure.text = table([row])
        ElementTree.SubElement(suite, "system-out").text = str(report)
    for model, reason in impossible.items():
        case = ElementTree.SubElement(_suite(root, model, 1, errors=1), "testcase", classname="parity", name=model)
        ElementTree.SubElement(case, "error", message=reason)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, name: str, tests: int, failures: int = 0, errors: int = 0) -> ElementTree.Element:
    counts = {"tests": tests, "failures": failures, "errors": errors}
    return ElementTree.SubElement(root, "testsuite", name=name, **{key: str(count) for key, count in counts.items()})
