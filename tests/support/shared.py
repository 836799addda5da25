"""What the workers of a test run share: made by the first that asks, while the others wait for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable

import pytest


@contextlib.contextmanager
def alone(path: pathlib.Path):
    """One process at a time holds the lock that this file is."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[], object]) -> object:
    """What `make()` returned to the first worker that asked for `name` in this run; it goes through JSON."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it
    path = folder / f"{name}.json"
    with alone(folder / f"{name}.lock"):
        if not path.exists():
            made = json.dumps(make())
            path.write_text(made)
    return json.loads(path.read_text())
