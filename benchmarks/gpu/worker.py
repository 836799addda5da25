"""Rows measured in a process of their own: a kernel that hangs or faults costs its row, not the run.

An illegal memory access leaves a CUDA context that fails every later call, and a kernel that never ends cannot be
interrupted from Python.  So the runner keeps its rows in a worker, stops it when a row takes too long, and starts
another one when it is gone or its context is broken.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from ..meters.timing import describe
from .rows import STOPPED, Row, Settings

Plan = Callable[[Settings], Sequence[Row]]


def measured(row: Row, limit_s: float) -> dict[str, object]:
    """What a row's `make` returns, with a status; an exception becomes the status."""
    try:
        found = row.make(limit_s)
    except subprocess.TimeoutExpired as error:
        return {"status": f"{STOPPED} after {error.timeout:.0f} s"}
    except Exception as error:  # a row that cannot be measured is reported as such, and the others still are
        return {"status": f"error: {describe(error, 600)}"}
    return {"status": "ok", **found}


def context_broken() -> bool:
    """Whether the CUDA context, if there is one, is of no more use; also frees what the last row held."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return True
    return False


def serve(connection: Connection, plan: Plan, settings: Settings) -> None:
    """The worker: measures the rows whose ids come in, sends back what it found, ends with its parent."""
    os.setpgid(0, 0)  # so that whatever a row started can be ended with it
    rows = {row.id: row for row in plan(settings)}
    while True:
        try:
            asked, limit_s = connection.recv()
        except EOFError:
            return
        found = measured(rows[asked], limit_s)
        broken = context_broken()
        connection.send((found, broken))
        if broken:
            return


class Worker:
    """A process that measures rows: `with Worker(plan, settings) as worker: worker(row, limit_s)`."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self.plan, self.settings = plan, settings
        self.process: multiprocessing.Process | None = None
        self.connection: Connection | None = None

    def __call__(self, row: Row, limit_s: float) -> dict[str, object]:
        """Measure a row; a row that does not end within `limit_s`, or ends the process, has that as its status."""
        if row.apart:
            return measured(row, limit_s)
        if self.process is None:
            self._start()
        try:
            self.connection.send((row.id, limit_s))
            if not self.connection.poll(limit_s):
                self.stop()
                return {"status": f"{STOPPED} after {limit_s:.0f} s"}
            found, broken = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join(10)
            code = self.process.exitcode
            self.stop()
            return {"status": f"error: its process ended with {code}"}
        if broken:
            self.stop()
            found["status"] = f"{found['status']}; it left the CUDA context unusable"
        return found

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.plan, self.settings), daemon=False)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process and everything that it started."""
        if self.process is None:
            return
        self.connection.close()
        for end in (lambda: os.killpg(self.process.pid, signal.SIGKILL), self.process.kill):
            try:
                end()
            except (ProcessLookupError, PermissionError):  # it is gone, or had not yet made its group
                continue
        self.process.join()
        self.process = self.connection = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
