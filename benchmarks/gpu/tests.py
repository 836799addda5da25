"""The tests on the device: those marked `gpu`, those that elsewhere run in an interpreter, and the sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from ..record.environment import ROOT
from .rows import Row, Settings

# Files whose tests run on the GPU where there is one, without being marked.
TRITON = "tests/backends/triton"
ON_DEVICE = ("conv", "plan", "pool", "training", "training_plan")  # of those, what runs on a device as it is
SANITIZED = "tests/device/test_ops.py::test_small_shapes"
TOOLS = ("memcheck", "racecheck")
MOST_WORKERS = 12  # they compile Triton kernels most of the time, and share the one GPU
BUILD_S = 150
KEPT_LINES, KEPT_FAILURES = 40, 60


def build() -> dict[str, object]:
    """Compile the extension in place; what the compiler said last where it failed."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    try:
        code, output = run(command, BUILD_S)
    except subprocess.TimeoutExpired:
        return {"status": f"error: it did not end within {BUILD_S} s", "output": []}
    status = "ok" if code == 0 else f"error: it ended with {code}"
    return {"status": status, "output": output.splitlines()[-KEPT_LINES:] if code else []}


def rows(settings: Settings) -> list[Row]:
    """The marked tests, each file that runs on the device, and both of the sanitizer's tools over each backend."""
    found = [_tests("marked", ("-m", "gpu", f"--ignore={TRITON}", "tests"), 90)]
    found += [_tests(f"triton_{name}", (f"{TRITON}/test_{name}.py",), 20) for name in ON_DEVICE]
    for tool in TOOLS:
        for backend in settings.available(settings.backends):
            make = lambda limit_s, t=tool, b=backend: sanitized(t, b, limit_s)  # noqa: E731
            later = int(tool != TOOLS[0])
            found.append(Row("tests", f"{tool}/{backend}", make, 30, ("machine", "tests"), later, apart=True))
    return found


def _tests(name: str, arguments: tuple[str, ...], expected_s: float) -> Row:
    make = lambda limit_s: tested(arguments, limit_s)  # noqa: E731
    return Row("tests", name, make, expected_s, ("machine", "tests"), apart=True)


def run(command: Sequence[str], limit_s: float, changes: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and output of a command in the checkout.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was stopped with everything that it had started.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | (changes or {})
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            code = process.wait(limit_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return code, output.read()


def counted(report: Path) -> dict[str, object]:
    """passed, failed, skipped and the failures of a JUnit file: their ids with the first line, and skips by reason.

    Raises:
        RuntimeError: there is no such file, because pytest did not get that far.
    """
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise RuntimeError(f"pytest left no report: {error}") from None
    failures, skips = [], {}
    for case in cases:
        for outcome in case:
            message = " ".join((outcome.get("message") or "").split())[:300]
            if outcome.tag in ("failure", "error"):
                failures.append(f"{case.get('classname')}::{case.get('name')}: {message}")
            elif outcome.tag == "skipped":
                skips[message] = skips.get(message, 0) + 1
    skipped = sum(skips.values())
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures[:KEPT_FAILURES],
        "skips": skips,
    }


def tested(arguments: Sequence[str], limit_s: float) -> dict[str, object]:
    """Run pytest and count; it fails where no test ran, since then nothing was shown.

    Raises:
        RuntimeError: it could not collect.
    """
    workers = min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) - 2))
    parallel = ("-n", str(workers), "--dist", "worksteal") if importlib.util.find_spec("xdist") and workers > 1 else ()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        code, output = run([*command, *parallel, *arguments], limit_s, {"OMP_NUM_THREADS": "1"})
        if code not in (0, 1):
            raise RuntimeError(f"pytest ended with {code}: {' '.join(output.splitlines()[-6:])[-500:]}")
        found = counted(report)
    if not found["passed"] + found["failed"]:
        return {"status": f"error: no test ran: {found['skips']}", **found}
    return {"status": "ok" if not found["failed"] else f"failed: {found['failed']} tests", **found}


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH or beside the toolkit."""
    places = os.pathsep.join(("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=places)


def errors_in(output: str) -> int | None:
    """How many errors or hazards the sanitizer's summaries add up to; None where there is no summary."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)", output)
    return sum(map(int, counts)) if counts else None


def sanitized(tool: str, backend: str, limit_s: float) -> dict[str, object]:
    """A tool of compute-sanitizer over the kernels of a backend at small shapes.

    torch's caching allocator is switched off, so that each tensor is an allocation that memcheck knows the end of.
    The tests judge the results too, and a run in which none passed proves nothing.
    """
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise RuntimeError("no compute-sanitizer on the PATH or in /usr/local/cuda: nothing was checked")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sanitizer, "--tool", tool, "--print-limit", "20", sys.executable, "-m", "pytest", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}", SANITIZED, "-k", backend]
        _, output = run(command, limit_s, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"})
        tests = counted(report)
    errors = errors_in(output)
    if errors is None or not tests["passed"] + tests["failed"]:
        status = "error: " + ("the sanitizer gave no summary" if errors is None else f"no test ran: {tests['skips']}")
    else:
        status = "ok" if not errors and not tests["failed"] else f"failed: {errors} errors, {tests['failed']} tests"
    marked = [line for line in output.splitlines() if line.startswith("========= ")]
    return {"status": status, "tool": tool, "errors": errors, "report": marked[:KEPT_LINES], **tests}
