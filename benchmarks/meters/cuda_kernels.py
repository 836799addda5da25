"""The compiled CUDA kernels: what each needs, read from the machine code inside `fused_resnet._C`; needs no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from fused_resnet.backends.cuda import availability

from ..record.environment import ROOT
from .aot import _instructions, _opcode, read_resources

MAX_SHARED_BYTES = 227 * 1024  # that a block may have on sm_90
RESERVED_BYTES = 1024  # of static shared memory, on sm_90 and newer: the system's, outside of that maximum
NEEDED = {  # instructions, by how the names of kernels begin
    **dict.fromkeys(("conv", "bottleneck"), ("HGMMA", "UTMALDG")),
    "stem_kernel": ("HGMMA", "UTMASTG"),
    "stem_wgrad": ("HMMA", "UTMALDG"),
}
DTYPES = ("bf16", "f16")  # by their number in `enum class ElementType`
BUILD = ROOT / "build"
# wgmma instructions that ptxas had to run one after the other
PTXAS_WARNING = re.compile(r"\(C75\d\d\)|Potential Performance Loss")


def extension() -> ModuleType:
    """`fused_resnet._C`.

    Raises:
        ImportError: it was not compiled; the message says how to get it.
    """
    reason = availability.extension_reason()
    if reason is not None:
        raise ImportError(reason)
    return availability.extension()


def disassembler() -> str | None:
    """cuobjdump: the toolkit's or, since it need not have one, Triton's."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found = shutil.which("cuobjdump") or shutil.which(
        "cuobjdump", path=":".join(f"{home}/bin" for home in homes if home)
    )
    if found is None:
        try:
            import triton.backends.nvidia as nvidia
        except ImportError:
            return None
        found = shutil.which("cuobjdump", path=Path(nvidia.__file__).with_name("bin"))
    return found


def _dump(tool: str, library: str, option: str, arch: str) -> str:
    command = [tool, "-arch", arch, option, library]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _by_function(text: str, heading: str) -> dict[str, str]:
    """What follows each heading, by the function that it names."""
    parts = re.split(heading, text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def demangled(symbol: str) -> tuple[str, list[int]]:
    """A kernel's name and the numbers that it is a template of: types, extents, flags."""
    found = re.match(r"_ZN(\d+)(\w+)", symbol)
    rest = found[2][int(found[1]) :]
    length = re.match(r"\d+", rest)
    name, rest = rest[length.end() :][: int(length[0])], rest[length.end() + int(length[0]) :]
    arguments = re.match(r"I((?:L(?:[ib]|\d+[A-Za-z]+|N\w+?E)\d+E)+)E", rest)
    numbers = re.findall(r"L(?:[ib]|\d+[A-Za-z]+|N\w+?E)(\d+)E", arguments[1]) if arguments else []
    return name, [int(number) for number in numbers]


def _shared(name: str, numbers: list[int], dynamic: dict[str, int]) -> int:
    """Bytes of dynamic shared memory of an instantiation, as `fused_resnet._C.shared_bytes()` lists them, or 0."""
    keys = [name, " ".join([name, *map(str, numbers[1:])])]
    return next((dynamic[key] for key in keys if key in dynamic), 0)


def results(archs: Iterable[int]) -> list[dict]:
    """One row a kernel and architecture of `archs` that the extension holds machine code for, as `kernels` prints them.

    Raises:
        ImportError: the extension was not compiled.
        FileNotFoundError: there is no cuobjdump.
    """
    compiled, tool = extension(), disassembler()
    if tool is None:
        raise FileNotFoundError("no cuobjdump: neither a CUDA toolkit nor triton is installed; `pip install triton`")
    names = {name for listed in compiled.kernels().values() for name in listed.split() if name.startswith("sm_")}
    rows = []
    wanted = [(arch, name) for arch in archs for name in sorted(names) if re.fullmatch(rf"sm_{arch}[af]?", name)]
    for arch, name in wanted:
        usage = _by_function(_dump(tool, compiled.__file__, "-res-usage", name), r"Function (\w+):")
        sass = _by_function(_dump(tool, compiled.__file__, "-sass", name), r"Function : (\w+)")
        rows += [_row(arch, symbol, usage[symbol], sass[symbol], compiled.shared_bytes()) for symbol in usage]
    return rows


def _row(arch: int, symbol: str, usage: str, sass: str, dynamic: dict[str, int]) -> dict:
    kernel, numbers = demangled(symbol)
    variant = " ".join([DTYPES[numbers[0]], *map(str, numbers[1:])]) if numbers else ""
    reserved = RESERVED_BYTES if arch >= 90 else 0
    resources = read_resources(usage, sass, lambda static: static - reserved + _shared(kernel, numbers, dynamic))
    opcodes = Counter(_opcode(text) for _, text in _instructions(sass))
    counts = {name: opcodes[name] for name in ("HGMMA", "HMMA", "UTMALDG", "UTMASTG", "ACQBULK", "PREEXIT")}
    counts["read_only_loads"] = len(re.findall(r"\bLDG\.[\w.]*CONSTANT", sass))
    head = {"arch": arch, "model": "", "layer": "CUDA C++", "shape": "", "tile": variant, "kernel": kernel}
    return head | asdict(resources) | {"spills": resources.spills or bool(resources.stack_bytes)} | counts


def complaints(rows: list[dict]) -> list[str]:
    """What is wrong with the kernels: spills, too much shared memory, instructions that must be there and are not."""
    wrong = []
    for row in rows:
        name = f"sm_{row['arch']} {row['kernel']} {row['tile']}".strip()
        if row["spills"]:
            wrong.append(f"{name} spills")
        if row["shared_bytes"] > MAX_SHARED_BYTES:
            wrong.append(f"{name} has {row['shared_bytes']} bytes of shared memory, a block at most {MAX_SHARED_BYTES}")
        needed = next((opcodes for start, opcodes in NEEDED.items() if row["kernel"].startswith(start)), ())
        wrong += [f"{name} has no {opcode}" for opcode in needed if not row[opcode]]
        if row["UTMALDG"] and not row["shared_bytes"]:
            wrong.append(f"{name} has shared memory that csrc/shared_bytes.cu does not list")
    return wrong


def build_logs() -> list[Path]:
    """What ptxas said when the extension was last compiled from this checkout; empty where that was elsewhere."""
    recipes = BUILD.glob(f"extension-{sys.implementation.cache_tag}-*/build.ninja")
    recipe = max(recipes, key=lambda recipe: recipe.stat().st_mtime, default=None)
    if recipe is None:
        return []
    objects = re.findall(r"^build (\S+\.o): compile", recipe.read_text(), re.MULTILINE)
    logs = (recipe.with_name(f"{name}.log") for name in objects)
    return [log for log in logs if log.is_file()]


def ptxas_warnings() -> list[str]:
    """The lines of the build's logs in which ptxas says that wgmma instructions are serialised."""
    lines = ((log, line) for log in build_logs() for line in log.read_text().splitlines())
    return [f"{log.name.removesuffix('.o.log')}: {line.strip()}" for log, line in lines if PTXAS_WARNING.search(line)]
