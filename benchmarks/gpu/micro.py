"""The micro-tests of csrc/micro: compiled by nvcc where they run, one line of JSON each."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..record.environment import ROOT
from .rows import Row, Settings

FOLDER = ROOT / "csrc" / "micro"
FLAGS = (
    "-std=c++20",
    "-O2",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-Xcompiler=-Wall,-Wextra",
    "-Werror=all-warnings",
)
ANSWERS = ("yes", "no", "error")
COMPILE_S, RUN_S = 120, 30


class MicroError(RuntimeError):
    """A micro-test that does not compile, end or answer; the message says which and why."""


def sources() -> dict[str, Path]:
    """The micro-tests by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.cu"))}


def find_nvcc() -> str:
    """nvcc on the PATH or in the toolkit's usual place.

    Raises:
        MicroError: it is in neither.
    """
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise MicroError("no nvcc on the PATH or in /usr/local/cuda/bin: the micro-tests are compiled where they run")
    return found


def compiled(name: str, folder: Path) -> Path:
    """The program of a micro-test, in `folder`."""
    program = folder / name
    command = [find_nvcc(), *FLAGS, f"-DMICRO_NAME={name}", str(sources()[name]), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
    if done.returncode:
        raise MicroError(f"{name} does not compile: {' '.join((done.stdout + done.stderr).split())[-600:]}")
    return program


def answered(program: Path) -> dict[str, str]:
    """What a program says: {"name", "answer", "detail"}."""
    try:
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=RUN_S)
    except subprocess.TimeoutExpired:
        raise MicroError(f"{program.name} did not end within {RUN_S} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        said = " ".join((done.stdout + done.stderr).split())[-300:]
        raise MicroError(f"{program.name} ended with {done.returncode} and said {said!r}, no line of JSON") from None
    if set(answer) != {"name", "answer", "detail"} or answer["answer"] not in ANSWERS or answer["name"] != program.name:
        raise MicroError(f"{program.name} answered {answer}: expected its name, one of {ANSWERS} and a detail")
    return answer


@functools.cache
def all_compiled() -> dict[str, Path | MicroError]:
    """Every program, or why there is none; compiled at once, since each takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="micro-"))

    def attempt(name: str) -> Path | MicroError:
        try:
            return compiled(name, folder)
        except (MicroError, OSError, subprocess.TimeoutExpired) as error:
            return error if isinstance(error, MicroError) else MicroError(f"{name} does not compile: {error}")

    with ThreadPoolExecutor() as threads:
        return dict(zip(sources(), threads.map(attempt, sources()), strict=True))


def measured(name: str) -> dict[str, object]:
    """Compile and run a micro-test; an answer "error" is the row's error."""
    program = all_compiled()[name]
    if isinstance(program, MicroError):
        raise program
    answer = answered(program)
    if answer["answer"] == "error":
        raise MicroError(f"{name}: {answer['detail']}")
    return {"answer": answer["answer"], "detail": answer["detail"]}


def rows(settings: Settings) -> list[Row]:
    """One row a question; the sources and the machine decide whether it was asked."""
    return [
        Row("micro", name, lambda _, n=name: measured(n), 6, ("machine", "micro"), apart=True) for name in sources()
    ]
