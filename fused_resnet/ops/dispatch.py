"""Which backend runs a call: the one asked for by name, or the fastest valid one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ..backends import BACKENDS, load, unavailable_reason
from ..errors import BackendError
from . import asked
from .asked import AUTO, ENVIRONMENT_VARIABLE, current

# Fastest first, per device type; the reference takes whatever is left.
_PREFERENCE = {"cpu": ("onednn", "reference"), "cuda": ("cuda", "triton", "reference")}

# On a CPU the convolution is nearly all of the time, and what fusing saves of the rest is a pass over the map or two.
# Below this many elements of a block's input, choosing the ops in Python costs as much as that.
SMALL_MAP = 2**20

# A backend that lacks one of these trains no network, whatever else it has.
_NEEDED_TO_TRAIN = ("conv_stats", "conv_dgrad", "conv_wgrad", "conv1x1_backward", "gram")


@dataclass
class Decision:
    """One choice of a forward pass: `module`'s path (fused when `unfused_reason` is None), or an op's backend."""

    module: object | None = None
    unfused_reason: str | None = None
    op: str = ""
    backend: str = ""
    backend_reason: str = ""


_recorders: asked.Stack[list[Decision]] = asked.Stack("fused_resnet: recorders")


class use_backend:
    """Ask for a backend by name: `use_backend("triton")` for the process, `with use_backend("triton"):` for a while.

    `"auto"`, the default, picks the fastest backend that is available and valid for the device, dtype and shape.  Under
    any other name every raw op runs there or raises; blocks that must take the unfused path (see
    `fused_resnet.explain`), or train on a backend without the training ops, still take torch's modules.

    A `with` asks in its own thread or asyncio task alone, and in the backward passes started there; nobody else ever
    sees it.  It comes before the plain call, which asks in every thread that is not inside a `with`; that includes the
    threads that others start inside one, such as DataParallel's: they begin without a context.  The environment
    variable FUSED_RESNET_BACKEND makes the process's first choice.

    A call of a model, or of a block on its own, takes the choice as it is when the call begins and keeps it to the end.
    Its backward pass runs on the same backend, wherever and whenever it runs.  What torch's checkpointing computes
    again is a call of its own, so let a `with` around a checkpointed forward pass reach around its backward pass too:
    else the thread that starts the backward pass chooses (on a GPU with torch 2.11, the process).  A compiled model's
    ops ask one by one, when they run.

    The object that the plain call returns is to be dropped: one that is kept asks from the next op, or the next
    `use_backend`, in its thread on.  One object may be entered several times, and is left where it was entered.

    Raises:
        ValueError: no backend has that name.
        BackendError: this machine cannot run it; the message says why.
        RuntimeError: a `with` is left in another thread or task than it was entered in.
    """

    _request: asked.Request | None = None

    def __init__(self, name: str) -> None:
        if name != AUTO:
            _require_available(name)
        self._name = name
        # Python calls this before it says whether there is a `with`: until then, nobody may see the choice.
        self._request = asked.request(name)

    def __enter__(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            asked.withdraw(request)
        asked.enter(self._name, self)

    def __exit__(self, *exception) -> None:
        if not asked.leave(self):
            raise RuntimeError(
                f"use_backend({self._name!r}) is left in a thread or task that has not entered it; leave it where it"
                " was entered"
            )

    def __del__(self) -> None:
        if self._request is not None:
            asked.settle(self._request)

    def __repr__(self) -> str:
        # An interactive session shows, and keeps, what a plain call returns.
        if self._request is not None:
            asked.settle(self._request)
        return f"use_backend({self._name!r})"


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
    if current() == AUTO and x.device.type == "cpu" and x.numel() < SMALL_MAP:
        return f"torch's own modules are as fast on a CPU below {SMALL_MAP:,} elements, the input has {x.numel():,}"
    return None


def _unsupported_reason(backend: ModuleType, op: str, x: Tensor, arguments: dict) -> str | None:
    """Why the backend cannot run this call: it may not take the arguments, or lack the op."""
    reason = backend.unsupported_reason(op, x, **arguments)
    return f"it has no {op}" if reason is None and not hasattr(backend, op) else reason


def trains_by_name() -> bool:
    """Whether a backend was asked for by name and has the training ops; `auto` trains through torch's own modules."""
    # Under torch.compile nobody trains by name, whatever was asked for.
    if torch.compiler.is_compiling():
        return False
    name = current()
    return name != AUTO and all(hasattr(_named(name), op) for op in _NEEDED_TO_TRAIN)


def taken_by_name(op: str, x: Tensor, **arguments) -> bool:
    """Whether a backend was asked for by name and takes this call of `op`; `auto` takes none that was not measured."""
    name = current()
    return name != AUTO and _unsupported_reason(_named(name), op, x, arguments) is None


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
    return _choose(current(), op, x, arguments)


def _choose(requested: str, op: str, x: Tensor, arguments: dict) -> tuple[str, str]:
    if requested != AUTO:
        _explicit(op, requested, x, arguments)
        return requested, "asked for by name"
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
    requested = current()
    name, reason = _choose(requested, op, x, arguments)
    note_backend(op, name, reason)
    backend = _available(name)
    function = getattr(backend, f"{op}_auto", None) if requested == AUTO else None
    return function or getattr(backend, op)


def note_backend(op: str, name: str, reason: str) -> None:
    """Tell whoever is recording here which backend runs `op`, and why."""
    for rows in _recorders.entries():
        rows.append(Decision(op=op, backend=name, backend_reason=reason))


def note_path(module: object, unfused_reason: str | None) -> None:
    """Tell whoever is recording here which path `module` takes; compiled code tells nobody."""
    if torch.compiler.is_compiling():
        return
    for rows in _recorders.entries():
        rows.append(Decision(module=module, unfused_reason=unfused_reason))


@contextmanager
def recording() -> Iterator[list[Decision]]:
    """Collects every decision that this thread or task makes within the block, in order, backward passes included."""
    rows: list[Decision] = []
    _recorders.push(rows)
    try:
        yield rows
    finally:
        _recorders.remove(lambda other: other is rows)
