"""The emulator's tests under AddressSanitizer and UndefinedBehaviorSanitizer: `make test-sanitized`.

The emulated kernels are compiled with both into libraries of their own, and Python is started with ASan's runtime in
front: it has to be there before anything allocates, so that tensors too get their red zones.

    python -m tests.support.sanitized [--first-cases] [pytest's arguments]

`--first-cases` takes the first case of each test function; without tests named, every file that needs the emulator's
compiler is run, but those that plant faults: they break the kernels on purpose.
"""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import ROOT, emulated

TESTS = ROOT / "tests"
# Leaks are Python's and torch's. A kept allocation costs a shadow each: the fibers' stacks are what is freed most.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@functools.cache
def runtime() -> list[str]:
    """What goes in front of Python: libasan, and the libstdc++ whose throw it must find when it starts; else nothing.

    Only gcc's are known to work in this way; clang keeps its own in other places.
    """
    compiler = emulated.compiler()
    if compiler is None or sys.platform != "linux" or "clang" in pathlib.Path(os.path.realpath(compiler)).name:
        return []
    answers = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    return answers if all(map(os.path.isabs, answers)) else []


def missing() -> str | None:
    """Why nothing can be run under the sanitizers here; None where it can."""
    if emulated.compiler() is None:
        return "needs a host compiler with C++20 and _Float16"
    if not runtime():
        return f"{emulated.compiler()} has no libasan.so that could be loaded in front of Python: install gcc's libasan"
    done = run([sys.executable, "-c", "print('started')"])
    return None if done.stdout == "started\n" else f"Python does not start under libasan: {done.stderr[-500:]}"


def run(command: list[str], capture: bool = True) -> subprocess.CompletedProcess:
    """A command of Python's, with ASan's runtime in front and the emulated kernels compiled for it."""
    variables = os.environ | OPTIONS | {"LD_PRELOAD": ":".join(runtime()), emulated.SANITIZE: "1"}
    return subprocess.run(command, env=variables, cwd=ROOT, capture_output=capture, text=True)


def files() -> list[str]:
    """The tests of the emulator and of every kernel on it."""
    found = [path for path in sorted(TESTS.rglob("test_*.py")) if "needs_compiler" in path.read_text()]
    return [
        str(path.relative_to(ROOT)) for path in found if "faults" not in path.stem and path.stem != "test_sanitized"
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """As a plugin: leaves of each test function its first case."""
    first = {}
    for item in items:
        first.setdefault((item.path, item.cls, item.originalname), item)
    kept = set(map(id, first.values()))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = first.values()


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    reason = missing()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    plugin = ["-p", "tests.support.sanitized"] if "--first-cases" in arguments else []
    rest = [argument for argument in arguments if argument != "--first-cases"]
    named = any(argument.partition("::")[0].endswith(".py") for argument in rest)
    pytest_run = [sys.executable, "-m", "pytest", *plugin, *rest, *([] if named else files())]
    return run(pytest_run, capture=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
