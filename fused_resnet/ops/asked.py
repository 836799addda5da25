"""Which backend is asked for: by a call that is running, by the thread or task at hand, or by the process.

A choice for the process is one name.  Whatever is narrower lives in context variables, so that no thread and no task
sees another one's; a backward pass sees those of the thread that started it, on whichever thread torch runs it.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, NamedTuple, ParamSpec, TypeVar

import torch

AUTO = "auto"
ENVIRONMENT_VARIABLE = "FUSED_RESNET_BACKEND"

Entry = TypeVar("Entry")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Where torch.autograd.graph keeps, for autograd's own threads, the context of the thread that started a backward pass.
# torch 2.11 keeps none, and what it has to put one there miscounts references.
_OF_THE_BACKWARD = "context"


class Stack(Generic[Entry]):
    """Entries that belong to a thread or an asyncio task, and to the backward passes that it starts."""

    def __init__(self, name: str) -> None:
        self._entries: ContextVar[tuple[Entry, ...]] = ContextVar(name, default=())

    def entries(self) -> tuple[Entry, ...]:
        """Innermost last."""
        return self._entries.get() or self._of_the_backward()

    def _of_the_backward(self) -> tuple[Entry, ...]:
        # Autograd's own threads, one a GPU, have an empty context.
        if not torch._C._is_key_in_tls(_OF_THE_BACKWARD):
            return ()
        context = torch._C._get_obj_in_tls(_OF_THE_BACKWARD)
        return () if context is None else context.get(self._entries, ())

    def push(self, entry: Entry) -> None:
        self._entries.set((*self._entries.get(), entry))

    def remove(self, matches: Callable[[Entry], bool]) -> bool:
        """Take out the innermost entry that matches; whether this context has one.

        Not the innermost of all: contexts of suspended generators are left in any order.
        """
        entries = self._entries.get()
        for i in range(len(entries) - 1, -1, -1):
            if matches(entries[i]):
                self._entries.set(entries[:i] + entries[i + 1 :])
                return True
        return False


class Choice(NamedTuple):
    """A backend's name, and whoever asked for it and will take it back."""

    name: str
    owner: object


class Request(NamedTuple):
    """A name asked for by `use_backend(name)`, of which nobody knows yet whether a `with` is about to enter it."""

    number: int
    name: str
    thread: int


_choices: Stack[Choice] = Stack("fused_resnet: backend")

# The process's choice, and the number of the request that made it: later ones win, whenever they come to count.
_process = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
_process_number = 0
_numbers = itertools.count(1)

# By thread, and for no other thread to see: its latest request, for as long as a `with` may enter it.
_open_requests: dict[int, Request] = {}


def current() -> str:
    """The backend asked for: a name, or "auto"."""
    choices = _choices.entries()
    if choices:
        return choices[-1].name
    if _open_requests:
        _settle_own()
    return _process


def request(name: str) -> Request:
    """Ask for `name`, in the process or in a context: `settle` says the one, `withdraw` the other."""
    _settle_own()
    made = Request(next(_numbers), name, threading.get_ident())
    _open_requests[made.thread] = made
    return made


def settle(made: Request) -> None:
    """No `with` has entered the request: it is for the process."""
    global _process, _process_number
    withdraw(made)
    if made.number > _process_number:
        _process_number, _process = made.number, made.name


def withdraw(made: Request) -> None:
    """A `with` enters the request: the process does not hear of it."""
    if _open_requests.get(made.thread) is made:
        _open_requests.pop(made.thread, None)


def _settle_own() -> None:
    made = _open_requests.get(threading.get_ident())
    if made is not None:
        settle(made)


def enter(name: str, owner: object) -> None:
    """`name` is asked for in this thread or task, until `owner` leaves."""
    _choices.push(Choice(name, owner))


def leave(owner: object) -> bool:
    """Take back what `owner` asked for last; whether it did so in this thread or task."""
    return _choices.remove(lambda choice: choice.owner is owner)


class held:
    """Inside, one backend is asked for, whatever other threads ask for meanwhile; a `with` inside it still counts.

    `name`, or the one that is asked for at the beginning; the `with` gives it.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name

    def __enter__(self) -> str:
        name = current() if self._name is None else self._name
        enter(name, self)
        return name

    def __exit__(self, *exception) -> None:
        leave(self)


def one_backend(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function` with all its ops, and all decisions on the way to them, on the backend asked for when it is called."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        # Compiled code decides when it runs, op by op.
        if torch.compiler.is_compiling() or _choices.entries():
            return function(*arguments, **named)
        with held():
            return function(*arguments, **named)

    return call
