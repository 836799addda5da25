"""Whether Triton can run: on this machine, and on these tensors."""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

MIN_TRITON = (3, 6)
MIN_ARCH = 80
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors too (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def architecture(device: torch.device) -> int:
    """The compute capability of `device`, 90 for 9.0; the interpreter stands in for an sm_90."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unavailable_reason() -> str | None:
    """None where Triton kernels can run here, else what is missing and how to get it.  Creates no CUDA context."""
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); install it with `pip install 'triton>=3.6'`"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        return f"triton {triton.__version__} is too old; install it with `pip install 'triton>=3.6'`"
    if interpreting():
        return None
    if not torch.cuda.is_available():
        build = "has no CUDA" if torch.version.cuda is None else f"was built for CUDA {torch.version.cuda}"
        return (
            f"there is no CUDA GPU that torch can use (torch {torch.__version__} {build});"
            " set TRITON_INTERPRET=1 to run the kernels slowly on the CPU"
        )
    best = max(architecture(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))
    if best < MIN_ARCH:
        return f"the kernels need a GPU of compute capability 8.0 or newer, and the best one here is sm_{best}"
    return None


def unsupported_reason(op: str, x: Tensor, weight: Tensor | None = None, **arguments) -> str | None:
    """None where the kernels take this call, else why not.

    Shapes and strides are all taken, groups and dilation by every op but `conv_stats`, which has no ATen to turn to."""
    if op == "conv_stats" and (arguments.get("groups", 1) != 1 or any(d != 1 for d in arguments.get("dilation", ()))):
        return "its conv_stats takes ungrouped, undilated convolutions; elsewhere use torch's and channel_stats"
    if x.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 and float32, got {x.dtype}"
    if interpreting():
        if x.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly; use float32 or float16 under TRITON_INTERPRET=1"
        return None if x.device.type in ("cpu", "cuda") else f"Triton's interpreter takes CPU tensors, got {x.device}"
    if x.device.type != "cuda":
        return f"its kernels need a CUDA tensor, got one on {x.device}; move it, or set TRITON_INTERPRET=1"
    if architecture(x.device) < MIN_ARCH:
        return f"its kernels need compute capability 8.0 or newer, and {x.device} is sm_{architecture(x.device)}"
    return None
