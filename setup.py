"""Builds fused_resnet; what can be declared stands in pyproject.toml, what must be decided (the extension) here.

`fused_resnet._C`, the CUDA C++ kernels, is compiled wherever a CUDA toolkit is found: the nvcc of $CUDA_HOME or
$CUDA_PATH, on the PATH, or in /usr/local/cuda.  It needs neither torch nor a GPU.  Without a toolkit the package
installs as pure Python.  In the environment:

    FUSED_RESNET_CUDA_ARCHS   what to compile for, in nvcc's names; "none" or nothing at all leaves the extension out
    MAX_JOBS                  compilers at a time; else one a core, and one for every 2 GB of memory that is free
    CXX                       the host compiler, nvcc's too; else c++, and what nvcc finds
    FUSED_RESNET_WERROR       1 makes every warning an error, as CI does: another compiler may warn of something new

The default is machine code for sm_80 (which 8.6 and 8.9 run too) and for Hopper, sm_90a, and PTX of compute_90, which
the driver compiles for every later GPU: PTX of the newest architecture would leave out those between.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
ARCHS = "sm_80 sm_90a compute_90"
HOPPER = "sm_90a"  # the one architecture of the sources below
HOPPER_SOURCES = ("conv*.cu", "bottleneck*.cu", "stem*.cu")
MIN_NVCC = (12, 5)  # the first with cudaGetDriverEntryPointByVersion; tried are those of 13.0
JOB_BYTES = 2 << 30
WITHOUT = "to install without CUDA kernels, set FUSED_RESNET_CUDA_ARCHS=none"
STRICT = os.environ.get("FUSED_RESNET_WERROR") == "1"
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *(["-Werror"] if STRICT else [])]
NVCC_FLAGS = ["-Xptxas=-v", "-cudart=static", *(["-Werror=all-warnings"] if STRICT else [])]
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", f"-I{CSRC}"]

RULES = """\
ninja_required_version = 1.5
rule compile
  command = $compiler $flags -MD -MF $out.d -c $in -o $out >$out.log 2>&1 || {{ cat $out.log; exit 1; }}
  depfile = $out.d
  deps = gcc
  description = $in
rule link
  command = {nvcc} -shared -cudart static {flags} -Xlinker --exclude-libs=ALL $in -o $out
"""


def architectures() -> list[str]:
    """What FUSED_RESNET_CUDA_ARCHS asks for, as nvcc names it: `sm_80` machine code, `compute_90` PTX."""
    asked = os.environ.get("FUSED_RESNET_CUDA_ARCHS", ARCHS).strip()
    if asked in ("", "none"):
        return []
    names = [f"sm_{word}" if word[0].isdigit() else word for word in re.split(r"[\s,;]+", asked)]
    wrong = [name for name in names if not re.fullmatch(r"(sm|compute)_\d+[af]?", name)]
    if wrong:
        raise CompileError(f"FUSED_RESNET_CUDA_ARCHS={asked!r}: expected names such as {ARCHS!r}, got {wrong[0]!r}")
    return names


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    for home in filter(None, homes):
        if not os.access(Path(home, "bin", "nvcc"), os.X_OK):
            raise CompileError(f"CUDA_HOME or CUDA_PATH is {home}, which holds no bin/nvcc; correct it, or {WITHOUT}")
        return str(Path(home, "bin", "nvcc"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_release(nvcc: str) -> str:
    """The release of the toolkit, such as "13.0"."""
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"{nvcc} does not run: {error}; repair the CUDA toolkit, or {WITHOUT}") from None
    found = re.search(r"release (\d+\.\d+)", answer)
    if found is None or tuple(map(int, found[1].split("."))) < MIN_NVCC:
        version = found[1] if found else repr(answer)
        needed = ".".join(map(str, MIN_NVCC))
        raise CompileError(f"{nvcc} is of CUDA {version}, and the kernels need {needed}; install that, or {WITHOUT}")
    return found[1]


def jobs() -> int:
    """Compilers to run at a time: as many as there are cores, and memory for."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return max(1, min(len(os.sched_getaffinity(0)), int(free[1]) * 1024 // JOB_BYTES))


def gencode(names: list[str]) -> list[str]:
    """nvcc's options for these architectures."""
    return [f"-gencode=arch={name.replace('sm_', 'compute_')},code={name}" for name in names]


def needs_hopper(source: Path) -> bool:
    """Whether a source holds kernels of TMA and wgmma, which no other architecture has."""
    return any(source.match(pattern) for pattern in HOPPER_SOURCES)


def build_needs() -> tuple[str, str]:
    """pybind11's headers and the path of ninja."""
    try:
        import pybind11

        headers = pybind11.get_include()
    except ImportError:
        raise CompileError(f"compiling needs pybind11: `pip install pybind11 ninja`, or {WITHOUT}") from None
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = None
    ninja = shutil.which("ninja", path=BIN_DIR) or shutil.which("ninja")
    if ninja is None:
        raise CompileError(f"compiling needs ninja: `pip install ninja`, or {WITHOUT}")
    return headers, ninja


class BuildExtension(build_ext):
    """Compiles with nvcc through ninja, into build/, where only what changed is compiled again."""

    def build_extension(self, extension: Extension) -> None:
        release = nvcc_release(extension.nvcc)
        headers, ninja = build_needs()
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / f"extension-{sys.implementation.cache_tag}-cuda{release}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(extension, headers, output))
        command = [ninja, "-C", str(folder), f"-j{jobs()}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, end="")
        if result.returncode:
            last = "\n".join(result.stdout.splitlines()[-20:])
            raise CompileError(f"compiling {extension.name} with {extension.nvcc} failed; {WITHOUT}\n{last}")


def ninja_file(extension: Extension, headers: str, output: Path) -> str:
    """One object a source, one library of the objects."""
    names, nvcc, cxx = extension.architectures, escaped(shlex.quote(extension.nvcc)), os.environ.get("CXX")
    ccbin = [f"-ccbin={cxx}"] if cxx else []
    defines = [f'-DFUSED_RESNET_ARCHS="{" ".join(names)}"', f"-DFUSED_RESNET_HOPPER={int(HOPPER in names)}"]
    cuda = [f"-Xcompiler={','.join(HOST_FLAGS)}", *NVCC_FLAGS, *ccbin]
    python = [f"-isystem{path}" for path in (headers, sysconfig.get_path("include"))]
    lines, objects = [RULES.format(nvcc=nvcc, flags=escaped(shlex.join(gencode(names) + ccbin)))], []
    for source in map(Path, extension.sources):
        compiler, flags = nvcc, [*cuda, *gencode([HOPPER] if needs_hopper(source) else names)]
        if source.suffix == ".cpp":
            compiler, flags = escaped(cxx or "c++"), [*HOST_FLAGS, *python]
        objects.append(escaped(f"{source.stem}.o", path=True))
        lines.append(f"build {objects[-1]}: compile {escaped(str(ROOT / source), path=True)}")
        lines.append(f"  compiler = {compiler}")
        lines.append(f"  flags = {escaped(shlex.join([*FLAGS, *flags, *defines]))}")
    lines.append(f"build {escaped(str(output), path=True)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def escaped(text: str, path: bool = False) -> str:
    """As ninja reads it in a variable, or among the paths of a build statement."""
    return re.sub(r"[$ :]" if path else r"\$", r"$\g<0>", text)


def compiled_extensions() -> list[Extension]:
    """The extension modules to compile: `fused_resnet._C`, or none where it is not wanted or cannot be."""
    names = architectures()
    nvcc = find_nvcc() if names else None
    if nvcc is None or sys.platform != "linux":
        if names and "FUSED_RESNET_CUDA_ARCHS" in os.environ:
            raise CompileError(
                "FUSED_RESNET_CUDA_ARCHS is set, but no nvcc is found: install a CUDA toolkit, or unset it"
            )
        return []
    launchers = sorted((CSRC / "launch").glob("*.cu"), key=lambda source: (not needs_hopper(source), source))
    sources = [*launchers, CSRC / "bindings.cpp"]  # what takes longest first
    if HOPPER not in names:
        sources = [source for source in sources if not needs_hopper(source)]
    extension = Extension("fused_resnet._C", [str(source.relative_to(ROOT)) for source in sources])
    extension.nvcc, extension.architectures = nvcc, names
    return [extension]


setup(ext_modules=compiled_extensions(), cmdclass={"build_ext": BuildExtension})
