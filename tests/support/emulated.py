"""CUDA kernels on the CPU: a `host.cpp` of csrc/ as a shared library, compiled once and kept.

A host file includes a kernel's own source, which a compiler that is not nvcc builds against the emulator instead of
PTX, and offers it as an extern "C" function returning NULL or the message of what went wrong.  The library is kept in
a cache directory under a hash of every source below csrc/, the compiler and the flags, so that only a change compiles.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import operator
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

import pytest

from tests.support import ROOT
from tests.support.shared import alone

CSRC = ROOT / "csrc"
# -O1 compiles the emulator in less than half the time of -O2; numeric.hpp and wgmma.hpp ask for more where it pays.
FLAGS = ("-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fPIC")
SANITIZE = (
    "FUSED_RESNET_SANITIZE"  # set by tests/support/sanitized.py: a process needs ASan's runtime in front to load these
)
# -O0 compiles them in a third of the time of -O1, and no access is optimised away before it is checked.
SANITIZED_FLAGS = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
if os.environ.get(SANITIZE) == "1":
    FLAGS += SANITIZED_FLAGS
_PROBE = "#include <bit>\n#include <version>\nint main() { return std::bit_cast<int>(0.0f) + int(_Float16(0)); }\n"


class EmulationError(AssertionError):
    """The emulator refused what the kernel did, or the host function its arguments."""


@functools.cache
def compiler() -> str | None:
    """The path of a host compiler that knows C++20 and _Float16, or None: $CXX, g++, clang++, in this order."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++"):
        path = candidate and shutil.which(candidate)
        if path and _compiles(path):
            return path
    return None


def _compiles(path: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        command = [path, *FLAGS, "-x", "c++", "-", "-o", f"{folder}/probe"]
        return not subprocess.run(command, input=_PROBE, text=True, capture_output=True).returncode


needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a host compiler with C++20 and _Float16")


def _cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(base) / "fused_resnet" / "emulation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to
        folder = pathlib.Path(tempfile.gettempdir()) / f"fused_resnet-emulation-{os.getuid()}"
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _machine() -> str:
    """What -march=native depends on, and the compiler's version."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return version + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _fingerprint(name: str, folders: list[pathlib.Path], flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(f"{name} {flags} {_machine()}".encode())
    for folder in folders:
        for source in sorted(folder.rglob("*")):
            if source.suffix in (".cpp", ".cu", ".cuh", ".hpp", ".h"):
                digest.update(f"{source.relative_to(folder)}\0".encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _compile(name: str, folders: list[pathlib.Path], flags: tuple[str, ...], path: pathlib.Path) -> None:
    includes = [f"-I{folder}" for folder in folders]
    source = CSRC / name
    command = [compiler(), *flags, *includes, "-shared", str(source), "-o", str(path), "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def library(name: str, instead: str | None = None, *flags: str) -> Library:
    """The shared library of a source of csrc/.

    Args:
        name: the source's path below csrc/, such as "kernels/conv1x1/dgrad/host.cpp".
        instead: a folder whose sources stand in for those of csrc/ that have the same path.
        flags: for the compiler, beside those of every library.

    Raises:
        RuntimeError: the compiler refuses the source; with its messages.
    """
    folders = [*([pathlib.Path(instead)] if instead else []), CSRC]
    flags = (*FLAGS, *flags)
    key = name.removesuffix(".cpp").replace("/", "-")
    return _library(f"{key}-{_fingerprint(name, folders, flags)}", name, tuple(folders), flags)


@functools.cache
def _library(key: str, name: str, folders: tuple[pathlib.Path, ...], flags: tuple[str, ...]) -> Library:
    cache = _cache()
    path = cache / f"{key}.so"
    with alone(cache / f"{name.replace('/', '-')}.lock"):
        if not path.exists():
            building = path.with_suffix(f".{os.getpid()}")
            _compile(name, list(folders), flags, building)
            building.rename(path)
            _drop_old(cache)
    return Library(str(path))


def _drop_old(cache: pathlib.Path, keep: int = 100) -> None:
    by_age = sorted(cache.glob("*.so"), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-keep]:
        path.unlink(missing_ok=True)


class Library:
    """A compiled host file: `library.name(...)` calls a row of its table (emulation/host.hpp), or else a C function."""

    def __init__(self, path: str) -> None:
        self._c = ctypes.CDLL(path)

    def __getattr__(self, name: str):
        kinds = self._kinds(name) if hasattr(self._c, "kinds_of") else None
        if kinds is not None:
            return functools.partial(self._call, name, kinds)
        function = self._c[name]
        if name.endswith("_bytes"):
            function.restype = ctypes.c_int64
        return function

    def _kinds(self, name: str) -> str | None:
        self._c.kinds_of.restype = ctypes.c_char_p
        kinds = self._c.kinds_of(name.encode())
        return None if kinds is None else kinds.decode()

    def _call(self, name: str, kinds: str, *arguments: object) -> int:
        """What a row answers; behind its arguments come the number of multiprocessors, a seed and workers.

        The last two may be missing, or the first.  Tensors go as their addresses, None as a null pointer.

        Raises:
            EmulationError: with the message of what went wrong.
        """
        own, rest = arguments[: len(kinds)], arguments[len(kinds) :]
        if len(own) < len(kinds) or len(rest) > 3:
            raise TypeError(f"{name} takes {len(kinds)} arguments and a schedule, got {len(arguments)}")
        multiprocessors, seed, workers = ((1, 0, 1), (*rest, 0, 1), (1, *rest), rest)[len(rest)]
        crossing = (ctypes.c_int64 * (len(kinds) + 1))(*map(_bits, own, kinds))
        answer, call = ctypes.c_int64(), self._c.call_row
        call.restype = ctypes.c_char_p
        message = call(name.encode(), crossing, ctypes.byref(answer), multiprocessors, seed, workers)
        if message is not None:
            raise EmulationError(message.decode())
        return answer.value


def _bits(value: object, kind: str) -> int:
    if kind == "f":
        return struct.unpack("q", struct.pack("d", value))[0]
    return 0 if value is None else value.data_ptr() if hasattr(value, "data_ptr") else operator.index(value)


def call(function, *arguments: int) -> None:
    """Calls a C function of ints; raises EmulationError with its message."""
    function.restype = ctypes.c_char_p
    message = function(*arguments)
    if message is not None:
        raise EmulationError(message.decode())
