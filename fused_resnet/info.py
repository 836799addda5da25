"""What is here and what is on: `python -m fused_resnet.info [--json]`, the first thing to paste into a bug report.

Versions are read from package metadata and devices from `nvidia-smi`, so that asking opens no CUDA context and loads
no package that it asks about (but triton, whose backend has to say whether it would run).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from . import backends
from ._version import __version__
from .backends.cuda import availability
from .ops import dispatch

PACKAGES = ("torch", "triton", "torchvision", "numpy")
_GPU_FIELDS = ("name", "compute_cap", "memory.total", "driver_version")


def report() -> dict[str, Any]:
    """Everything that the command prints, as plain dicts, lists and strings.

    `versions` maps a name to its version or None; `devices` is a list with the CPU first; `backends` maps a name to
    `{"on": bool, "reason": str}` and `extension` is the same for the compiled one; `requested` was asked for.
    """
    return {
        "versions": _versions(),
        "devices": [_cpu(), *_gpus()],
        "requested": dispatch.current(),
        "backends": {name: _backend(name) for name in backends.BACKENDS},
        "extension": _extension(),
    }


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"fused_resnet": __version__, "python": platform.python_version()}
    versions |= {name: _installed(name) for name in PACKAGES}
    # its metadata may lack the local part that tells a CPU build
    versions["torch"] = str(torch.__version__)
    versions["CUDA (of torch)"] = torch.version.cuda
    return versions


def _cpu() -> dict[str, str]:
    return {
        "device": "cpu",
        "name": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def _gpus() -> list[dict[str, str]]:
    """One entry a GPU that the driver names; an entry that says so where torch counts GPUs that it does not name."""
    rows = _nvidia_smi()
    seen = torch.cuda.device_count()
    gpus = [{"device": f"gpu {index}", **dict(zip(_GPU_FIELDS, row))} for index, row in enumerate(rows)]
    if rows and not seen:
        gpus.append(
            {"device": "cuda", "name": "torch sees none of these: a CPU build, or hidden by CUDA_VISIBLE_DEVICES"}
        )
    elif seen and not rows:
        gpus.append({"device": "cuda", "name": f"torch counts {seen}; nvidia-smi, which would name them, is not there"})
    return gpus


def _nvidia_smi() -> list[list[str]]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[field.strip() for field in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]


def _backend(name: str) -> dict[str, Any]:
    reason = backends.unavailable_reason(name)
    return {"on": reason is None, "reason": reason or "available"}


def _extension() -> dict[str, Any]:
    """Whether the CUDA C++ kernels are compiled: for what, and why `auto` takes which of them."""
    missing = availability.extension_reason()
    if missing is not None:
        return {"on": False, "reason": missing}
    compiled = Counter(availability.extension().kernels().values())
    kernels = ", ".join(f"{count} for {names}" for names, count in compiled.most_common())
    return {"on": True, "reason": f"kernels: {kernels}; {availability.proof()}"}


def text(info: dict[str, Any]) -> str:
    """`report()` for people."""
    lines = ["versions"]
    lines += [f"  {name:16} {version or 'not there'}" for name, version in info["versions"].items()]
    lines.append("devices")
    for device in info["devices"]:
        rest = [f"{value} {key}" if key == "threads" else value for key, value in device.items() if key != "device"]
        lines.append(f"  {device['device']:16} {', '.join(rest)}")
    requested = info["requested"]
    known = requested == dispatch.AUTO or requested in info["backends"]
    lines.append(f"backends (asked for: {requested}{'' if known else ', which is none: every op will raise'})")
    parts = {**info["backends"], "compiled extension": info["extension"]}
    for name, state in parts.items():
        lines.append(f"  {name:18} {'on ' if state['on'] else 'off'}  {state['reason']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_resnet.info", description="Versions, devices, and each backend and why it is on or off."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    info = report()
    print(json.dumps(info, indent=1) if parser.parse_args(argv).json else text(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
