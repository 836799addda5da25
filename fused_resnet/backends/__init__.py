"""The table of backends: modules with the same functions, of the same names and signatures as the raw ops.

A backend module defines ops of `fused_resnet.ops` and `fused_resnet.ops.training` (the reference all of them), and

    unavailable_reason() -> str | None
        None where this machine can run it, else one sentence: what is missing and how to get it.
    unsupported_reason(op, x, weight=None, **arguments) -> str | None
        None where it can run this call, else one sentence about the device, dtype or shape that it cannot take.

and may define

    unproven_reason(op, x) -> str | None
        Why `auto` must not take this op, although the backend can run it; a caller that asks by name still gets it.

Modules are imported when first asked for, so that `import fused_resnet` needs neither triton nor a GPU.
"""

from __future__ import annotations

import importlib
from types import ModuleType

BACKENDS: dict[str, str] = {
    "reference": f"{__name__}.reference",
    "onednn": f"{__name__}.onednn",
    "triton": f"{__name__}.triton",
    "cuda": f"{__name__}.cuda",
}


def load(name: str) -> ModuleType:
    """The backend module `name`.

    Raises:
        ValueError: no backend has that name.
        ImportError: the backend's own dependency is missing.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(BACKENDS)}, or 'auto'")
    return importlib.import_module(BACKENDS[name])


def unavailable_reason(name: str) -> str | None:
    """Why backend `name` cannot be used on this machine; None when it can."""
    try:
        return load(name).unavailable_reason()
    except ImportError as error:
        return f"it cannot be imported: {error}"
