"""Which backend runs a call: the one asked for by name, or the fastest valid one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from ..backends import BACKENDS, load, unavailable_reason
from ..errors import BackendError

AUTO = "auto"
ENVIRONMENT_VARIABLE = "FUSED_RESNET_BACKEND"

# Fastest first, per device type; the reference takes whatever is left.
_PREFERENCE = {"cpu": ("onednn", "reference"), "cuda": ("cuda", "triton", "reference")}

# On a CPU the convolution is nearly all of the time, and what fusing saves of the rest is a pass over the map or two.
# Below this many elements of a block's input, choosing the ops in Python costs as much as that.
SMALL_MAP = 2**20

# A backend that lacks one of these trains no network, whatever else it has.
_NEEDED_TO_TRAIN = ("conv_stats", "conv_dgrad", "conv_wgrad", "conv1x1_backward", "gram")

_requested = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO


@dataclass
class Decision:
    """One choice of a forward pass: `module`'s path (fused when `unfused_reason` is None), or an op's backend."""

    module: object | None = None
    unfused_reason: str | None = None
    op: str = ""
    backend: str = ""
    backend_reason: str = ""


_recorders: list[list[Decision]] = []


class use_backend:
    """Ask for a backend by name: `use_backend("triton")` for the process, `with use_backend("triton"):` for a while.

    `"auto"`, the default, picks the fastest backend that is available and valid for the device, dtype and shape.  Under
    any other name every raw op runs there or raises; blocks that must take the unfused path (see
    `fused_resnet.explain`), or train on a backend without the training ops, still take torch's modules.  The choice is
    the process's, not the thread's, as torch.backends' flags.  The environment variable FUSED_RESNET_BACKEND sets the
    initial choice.

    Raises:
        ValueError: no backend has that name.
        BackendError: this machine cannot run it; the message says why.
    """

    def __init__(self, name: str) -> None:
        global _requested
        if name != AUTO:
            _require_available(name)
        self._previous, _requested = _requested, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exception) -> None:
        global _requested
        _requested = self._previous


def current() -> str:
    """The backend asked for: a name, or "auto"."""
    return _requested


@functools.cache
def _available(name: str) -> ModuleType | None:
    """The backend's module where this machine can run it."""
    return load(name) if unavailable_reason(name) is None else None


def _named(name: str) -> ModuleType:
    """The backend asked for by name; raises as `use_backend` where there is none."""
    return (_available(name) if name in BACKENDS else None) or _require_available(name)


def _require_available(name: str) -> ModuleType:
    if name not in BACKENDS:
        expected = ", ".join([AUTO, *BACKENDS])
        raise ValueError(f"unknown backend {name!r}: use_backend() and {ENVIRONMENT_VARIABLE} expect one of {expected}")
    reason = unavailable_reason(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available here: {reason}")
    return load(name)


def too_small(x: Tensor) -> str | None:
    """Why `auto` lets torch's own modules have a block with the input `x`; None when fusing pays."""
    if _requested == AUTO and x.device.type == "cpu" and x.numel() < SMALL_MAP:
        return f"torch's own modules are as fast on a CPU below {SMALL_MAP:,} elements, the input has {x.numel():,}"
    return None


def _unsupported_reason(backend: ModuleType, op: str, x: Tensor, arguments: dict) -> str | None:
    """Why the backend cannot run this call: it may not take the arguments, or lack the op."""
    reason = backend.unsupported_reason(op, x, **arguments)
    return f"it has no {op}" if reason is None and not hasattr(backend, op) else reason


def trains_by_name() -> bool:
    """Whether a backend was asked for by name and has the training ops; `auto` trains through torch's own modules."""
    return _requested != AUTO and all(hasattr(_named(_requested), op) for op in _NEEDED_TO_TRAIN)


def taken_by_name(op: str, x: Tensor, **arguments) -> bool:
    """Whether a backend was asked for by name and takes this call of `op`; `auto` takes none that was not measured."""
    return _requested != AUTO and _unsupported_reason(_named(_requested), op, x, arguments) is None


def _explicit(op: str, name: str, x: Tensor, arguments: dict) -> ModuleType:
    backend = _named(name)
    reason = _unsupported_reason(backend, op, x, arguments)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run {op}: {reason}; use_backend('auto') picks one that can")
    return backend


def _candidates(op: str, x: Tensor, arguments: dict) -> Iterator[tuple[str, str | None]]:
    """Each backend that `auto` considers, with the reason against it, or None."""
    for name in _PREFERENCE.get(x.device.type, ("reference",)):
        backend = _available(name)
        yield name, _reason_against(backend, op, x, arguments) if backend else unavailable_reason(name)


def _reason_against(backend: ModuleType, op: str, x: Tensor, arguments: dict) -> str | None:
    """Why `auto` leaves this call to another backend: this one cannot run it, or has not been proven to."""
    unproven = getattr(backend, "unproven_reason", None)
    return (unproven and unproven(op, x)) or _unsupported_reason(backend, op, x, arguments)


def choose(op: str, x: Tensor, **arguments) -> tuple[str, str]:
    """The backend that would run `op` on these arguments, and why that one.

    Raises:
        ValueError, BackendError: as `use_backend`, when one was asked for by name.
    """
    if _requested != AUTO:
        _explicit(op, _requested, x, arguments)
        return _requested, "asked for by name"
    against = []
    for name, reason in _candidates(op, x, arguments):
        if reason is None:
            return name, "; ".join(against) or f"first choice on {x.device.type}"
        against.append(f"not {name}: {reason}")
    raise BackendError(f"no backend can run {op} on {x.device}: {'; '.join(against)}")


def implementation(op: str, x: Tensor, **arguments) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The function that runs `op` on these arguments.

    Under `auto` a backend may offer `<op>_auto`, which weighs its own kernel against the vendor library's.
    """
    name, reason = choose(op, x, **arguments)
    note_backend(op, name, reason)
    backend = _available(name)
    function = getattr(backend, f"{op}_auto", None) if _requested == AUTO else None
    return function or getattr(backend, op)


def note_backend(op: str, name: str, reason: str) -> None:
    """Tell whoever is recording which backend runs `op`, and why."""
    for rows in _recorders:
        rows.append(Decision(op=op, backend=name, backend_reason=reason))


def note_path(module: object, unfused_reason: str | None) -> None:
    """Tell whoever is recording which path `module` takes."""
    for rows in _recorders:
        rows.append(Decision(module=module, unfused_reason=unfused_reason))


@contextmanager
def recording() -> Iterator[list[Decision]]:
    """Collects every decision made within the block, in order."""
    rows: list[Decision] = []
    _recorders.append(rows)
    try:
        yield rows
    finally:
        _recorders[:] = [other for other in _recorders if other is not rows]
