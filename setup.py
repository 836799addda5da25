"""Builds fused_resnet; what can be declared stands in pyproject.toml, what must be decided (the extension) here.

`fused_resnet._C`, the CUDA C++ kernels, needs neither torch nor a GPU.  It is compiled where a CUDA toolkit is found,
the nvcc of $CUDA_HOME or $CUDA_PATH, on the PATH, or in /usr/local/cuda, and where it serves: beside a torch that has
CUDA, or before there is any torch, or when it is asked for, by the first variable below or by `setup.py build_ext`.
Otherwise the package installs as pure Python, and says why.  In the environment:

    FUSED_RESNET_CUDA_ARCHS   what to compile for, in nvcc's names; "default" is ARCHS, "none" or nothing at all leaves
                              the extension out
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
import site
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
ARCHS = "sm_80 sm_90a compute_90"
ASK = "FUSED_RESNET_CUDA_ARCHS=default asks for it"
HOPPER = "sm_90a"  # the one architecture of sources that include NEEDS_HOPPER
NEEDS_HOPPER = '#include "launch/hopper.h"'
MIN_NVCC = (12, 5)  # the first with cudaGetDriverEntryPointByVersion; tried are those of 13.0
JOB_BYTES = 2 << 30
TICK_S = 15
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
    asked = ARCHS if asked == "default" else asked
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


def site_packages() -> list[str]:
    """Where the packages are beside which this one will be, the first first.

    An isolated build keeps them from sys.path but runs, under pip, with the Python that they belong to.
    """
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return list(dict.fromkeys([*sys.path, sysconfig.get_path("purelib"), *user, *site.getsitepackages()]))


def installed_torch(folders: list[str]) -> tuple[str, bool] | None:
    """The version of torch in these folders and whether it has CUDA; None where there is none.

    Read, not imported: what it needs may be out of reach, and it takes seconds. A torch that does not say counts as one
    that has CUDA.
    """
    for folder in folders:
        try:
            text = Path(folder, "torch", "version.py").read_text()
        except OSError:
            continue
        said = dict(re.findall(r"^(__version__|cuda)\b[^=\n]*=\s*(.+?)\s*$", text, re.M))
        return said.get("__version__", "of no version").strip("'\""), said.get("cuda") != "None"
    return None


def decide(asked: str | None, commanded: bool, linux: bool, nvcc: str | None, torch: tuple[str, bool] | None) -> str:
    """Why the extension is left out; empty where it is compiled.

    Args:
        asked: FUSED_RESNET_CUDA_ARCHS, None where it is not set.
        commanded: whether `setup.py build_ext` was called.
        linux: whether this is Linux.
        nvcc: its path.
        torch: what is installed, as of `installed_torch`.

    Raises:
        CompileError: it was asked for by name and cannot be compiled.
    """
    if asked is not None and asked.strip() in ("", "none"):
        return f"FUSED_RESNET_CUDA_ARCHS={asked.strip()} leaves it out"
    if asked is not None and not (linux and nvcc):
        lacking = (
            "no nvcc is found: install a CUDA toolkit" if linux else "it is compiled on Linux alone: install there"
        )
        raise CompileError(f"FUSED_RESNET_CUDA_ARCHS is set, but {lacking}, or unset it")
    if not linux:
        return "it is compiled on Linux alone"
    if nvcc is None:
        return "no nvcc was found; install a CUDA toolkit, or name it in CUDA_HOME"
    if asked is None and not commanded and torch is not None and not torch[1]:
        return f"the torch beside it, {torch[0]}, has no CUDA; {ASK}"
    return ""


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
    return NEEDS_HOPPER in source.read_text()


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

    def run(self) -> None:
        say_what_is_left_out()
        super().run()

    def build_extension(self, extension: Extension) -> None:
        release = nvcc_release(extension.nvcc)
        headers, ninja = build_needs()
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / f"extension-{sys.implementation.cache_tag}-cuda{release}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(extension, headers, output))
        code, lines = run_aloud([ninja, "-C", str(folder), f"-j{jobs()}"])
        if code:
            last = "\n".join(lines[-20:])
            raise CompileError(f"compiling {extension.name} with {extension.nvcc} failed; {WITHOUT}\n{last}")


class BuildPython(build_py):
    """Leaves a word in the package on why it has no extension, for `python -m fused_resnet.info`."""

    def run(self) -> None:
        super().run()
        say_what_is_left_out()
        if not getattr(self, "editable_mode", False):
            note = Path(self.build_lib, "fused_resnet", "_C.txt")
            note.unlink(missing_ok=True)
            if LEFT_OUT:
                note.write_text(f"{LEFT_OUT}\n")


def say_what_is_left_out() -> None:
    """Once, when something is built; pip, which asks for metadata before, shows it with -v."""
    if LEFT_OUT:
        print(f"fused_resnet._C, the CUDA C++ kernels, is not compiled: {LEFT_OUT}", flush=True)


def run_aloud(command: list[str]) -> tuple[int, list[str]]:
    """Run it, printing each line as it comes, and one now and then; its exit status and its lines.

    pip without -v hides them, but its spinner turns, and its "still running" comes, with the lines that it is given.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    began, ended, output = time.monotonic(), threading.Event(), []

    def tick() -> None:
        while not ended.wait(TICK_S):
            print(f"compiling since {time.monotonic() - began:.0f} s", flush=True)

    threading.Thread(target=tick, daemon=True).start()
    for line in process.stdout:
        output.append(line.rstrip("\n"))
        print(output[-1], flush=True)
    code = process.wait()
    ended.set()
    return code, output


def ninja_file(extension: Extension, headers: str, output: Path) -> str:
    """One object a source, one library of the objects."""
    names, nvcc, cxx = extension.architectures, escaped(shlex.quote(extension.nvcc)), os.environ.get("CXX")
    ccbin = [f"-ccbin={cxx}"] if cxx else []
    defines = [f'-DFUSED_RESNET_ARCHS="{" ".join(names)}"', f"-DFUSED_RESNET_HOPPER={int(HOPPER in names)}"]
    cuda = [f"-Xcompiler={','.join(HOST_FLAGS)}", *NVCC_FLAGS, *ccbin]
    python = [f"-isystem{path}" for path in (headers, sysconfig.get_path("include"))]
    lines, objects = [RULES.format(nvcc=nvcc, flags=escaped(shlex.join(gencode(names) + ccbin)))], []
    for source in map(Path, extension.sources):
        compiler, flags = nvcc, [*cuda, *gencode([HOPPER] if needs_hopper(ROOT / source) else names)]
        if source.suffix == ".cpp":
            compiler, flags = escaped(cxx or "c++"), [*HOST_FLAGS, *python]
        objects.append(escaped(object_of(source), path=True))
        lines.append(f"build {objects[-1]}: compile {escaped(str(ROOT / source), path=True)}")
        lines.append(f"  compiler = {compiler}")
        lines.append(f"  flags = {escaped(shlex.join([*FLAGS, *flags, *defines]))}")
    lines.append(f"build {escaped(str(output), path=True)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def object_of(source: Path) -> str:
    """Its path in one word: most launchers are called launch.cu."""
    return "-".join(source.with_suffix(".o").parts[1:])


def escaped(text: str, path: bool = False) -> str:
    """As ninja reads it in a variable, or among the paths of a build statement."""
    return re.sub(r"[$ :]" if path else r"\$", r"$\g<0>", text)


def left_out() -> str:
    """Why the extension is not compiled here; empty where it is."""
    asked = os.environ.get("FUSED_RESNET_CUDA_ARCHS")
    nvcc = find_nvcc() if architectures() else None
    linux, commanded = sys.platform == "linux", "build_ext" in sys.argv
    return decide(asked, commanded, linux, nvcc, installed_torch(site_packages()))


def compiled_extensions() -> list[Extension]:
    """The extension module to compile: `fused_resnet._C`."""
    names = architectures()
    launchers = [*(CSRC / "kernels").rglob("*.cu"), *(CSRC / "launch").glob("*.cu"), CSRC / "shared_bytes.cu"]
    launchers.sort(key=lambda source: (not needs_hopper(source), source))
    sources = [*launchers, CSRC / "bindings.cpp"]  # what takes longest first
    if HOPPER not in names:
        sources = [source for source in sources if not needs_hopper(source)]
    extension = Extension("fused_resnet._C", [str(source.relative_to(ROOT)) for source in sources])
    extension.nvcc, extension.architectures = find_nvcc(), names
    return [extension]


def licence() -> dict[str, str]:
    """Said here and not in pyproject.toml, whose two forms no release of setuptools from 65 on takes both."""
    expression = int(setuptools.__version__.partition(".")[0]) >= 77
    return {"license_expression" if expression else "license": "BSD-3-Clause"}


def description() -> str:
    """The README less its links into the repository, which lead nowhere on a package index."""
    return re.sub(r"!?\[([^\]]+)\]\((?!https?://|#)[^)]*\)", r"\1", (ROOT / "README.md").read_text())


LEFT_OUT = left_out()
setup(
    ext_modules=[] if LEFT_OUT else compiled_extensions(),
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
    long_description=description(),
    long_description_content_type="text/markdown",
    **licence(),
)
