"""CUDA kernels on the CPU: a `host.cpp` of csrc/ as a shared library, compiled once and kept.

A host file includes a kernel's own source, which a compiler that is not nvcc builds against the emulator instead of
PTX, and offers it as an extern "C" function returning NULL or the message of what went wrong.  The library is kept in
a cache directory under a hash of every source below csrc/, the compiler and the flags, so that only a change compiles.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
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


def library(name: str, instead: str | None = None, *flags: str) -> ctypes.CDLL:
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
def _library(key: str, name: str, folders: tuple[pathlib.Path, ...], flags: tuple[str, ...]) -> ctypes.CDLL:
    cache = _cache()
    path = cache / f"{key}.so"
    with alone(cache / f"{name.replace('/', '-')}.lock"):
        if not path.exists():
            building = path.with_suffix(f".{os.getpid()}")
            _compile(name, list(folders), flags, building)
            building.rename(path)
            _drop_old(cache)
    return ctypes.CDLL(str(path))


def _drop_old(cache: pathlib.Path, keep: int = 100) -> None:
    by_age = sorted(cache.glob("*.so"), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-keep]:
        path.unlink(missing_ok=True)


def call(function, *arguments: object) -> None:
    """Calls a host function; raises EmulationError with its message.

    Tensors go as pointers, None as a null pointer, integers as C ints, floats as C floats.
    """
    function.restype = ctypes.c_char_p
    message = function(*map(_c_argument, arguments))
    if message is not None:
        raise EmulationError(message.decode())


def _c_argument(value: object) -> object:
    if value is None:
        return ctypes.c_void_p(None)
    if hasattr(value, "data_ptr"):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int(value)
