"""Where a benchmark ran: device, processor, threads, versions, commit, date; no host name and no path."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

# The instruction sets that decide which oneDNN, MKL and peer kernels run.
CPU_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
)
PACKAGES = (
    "fused_resnet",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "onnxruntime",
    "openvino",
    "onnx",
    "scikit-learn",
)
ROOT = Path(__file__).resolve().parents[2]


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device; raises ValueError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: not a device; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices here; use --device cpu"
        )
    return device


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, object]:
    """Model name, the flags that select kernels, and how many CPUs this process may use."""
    model, flags = platform.processor() or platform.machine(), []
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: the platform module's name is all there is
        text = ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            model = value
        elif key in ("flags", "Features"):
            flags = [flag for flag in CPU_FLAGS if flag in value.split()]
            break
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "machine": platform.machine(), "flags": flags, "usable_cpus": usable}


def graphics(device: torch.device) -> dict[str, object]:
    """Name, size, clocks and library versions of a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    fields = "driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        state = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={device.index or 0}"],
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        state = ""
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GiB": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        fields: state,
    }


def commit() -> dict[str, object]:
    """The commit of this checkout and whether it has changes; None where there is no commit or no git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain")
    return {"sha": git("rev-parse", "--verify", "HEAD"), "dirty": None if status is None else bool(status)}


def environment(device: torch.device) -> dict[str, object]:
    """Everything a reader needs to judge or repeat a measurement, ready for JSON."""
    found = {
        "device": str(device),
        "cpu": processor(),
        "gpu": graphics(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {name: version_of(name) for name in PACKAGES},
        "onednn": torch.backends.mkldnn.is_available(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    found["versions"]["torch"] = torch.__version__
    return found


def headline(found: dict[str, object]) -> str:
    """The environment in one line, for the top of a table."""
    cpu, gpu, versions, at = found["cpu"], found["gpu"], found["versions"], found["commit"]
    where = gpu["name"] if gpu else f"{cpu['model']} ({', '.join(cpu['flags'][-3:])}), {found['threads']} threads"
    state = f"commit {at['sha'][:10]}{' + changes' if at['dirty'] else ''}" if at["sha"] else "no commit"
    torchvision = versions["torchvision"] or "not installed"
    return f"{where}; torch {versions['torch']}, torchvision {torchvision}; {state}; {found['date']}"
