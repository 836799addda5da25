"""The one JSON file of `make gpu`: rows appended as they are measured, and which of them need not be measured again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from ..record.environment import ROOT
from ..record.report import write_json

SCHEMA = 1
# Raised when rows are measured in another way than before, so that older ones are not taken for the same.
METHOD = 1
SOURCES = ("fused_resnet", "csrc", "setup.py")
SUFFIXES = (".py", ".cu", ".cuh", ".h", ".hpp", ".cpp", ".json")
_VERSIONS = ("torch", "torchvision", "triton")


class ResultsError(ValueError):
    """A file that is not one of these, or not of this device; the message names it."""


def digest(parts: Iterable[bytes]) -> str:
    """Ten hexadecimal digits that differ where the parts do."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:10]


def digest_of_files(*names: str, root: Path = ROOT) -> str:
    """The digest of the sources under `names`, files or folders of the checkout: it needs no git."""
    files = [
        path for name in names for path in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))
    ]
    chosen = sorted(path for path in files if path.suffix in SUFFIXES and path.is_file())
    return digest(part for path in chosen for part in (str(path.relative_to(root)).encode(), path.read_bytes()))


def fingerprints(environment: dict[str, object]) -> dict[str, str]:
    """What results depend on: the machine with its libraries; our sources; those and the tests; the micro-tests."""
    gpu = environment["gpu"] or {}
    driver = next((value for name, value in gpu.items() if name.startswith("driver_version")), "")
    machine = [gpu.get("name"), str(driver).split(",")[0], gpu.get("cuda"), gpu.get("cudnn"), environment["device"]]
    machine += [environment["versions"].get(name) for name in _VERSIONS]
    return {
        "machine": digest(str(part).encode() for part in (METHOD, *machine)),
        "sources": digest_of_files(*SOURCES),
        "tests": digest_of_files(*SOURCES, "tests"),
        "micro": digest_of_files("csrc/micro"),
    }


class Results:
    """The rows of this run and of those before it on the same kind of device; every change is on the disk at once.

    Args:
        path: the file to write; what it holds already is kept.
        environment: as `_environment.environment` gives it.
        command: the command line.
        resume: other files whose rows are taken over, where they exist.

    Raises:
        ResultsError: a file that is there cannot be continued.
    """

    def __init__(
        self,
        path: Path,
        environment: dict[str, object],
        command: list[str],
        resume: Iterable[Path] = (),
        prints: dict[str, str] | None = None,
    ) -> None:
        self.path = path
        self.fingerprints = fingerprints(environment) if prints is None else prints
        self.runs: list[dict] = []
        self.rows: list[dict] = []
        for source in dict.fromkeys([*resume, path]):
            if source.exists():
                self._take_over(source, environment)
        self.run = {
            "id": secrets.token_hex(6),
            "environment": environment,
            "fingerprints": self.fingerprints,
            "command": command,
            "left_out": {},
        }
        self.runs.append(self.run)
        self._known = {row["key"] for row in self.rows}
        self.write()

    def _take_over(self, source: Path, environment: dict[str, object]) -> None:
        document = read(source)
        name = device_name(environment)
        for run in document["runs"]:
            if device_name(run["environment"]) != name:
                other = device_name(run["environment"])
                raise ResultsError(f"{source} holds results of {other}, this is {name}: write to another --out")
        known = {run["id"] for run in self.runs}
        new = [index for index, run in enumerate(document["runs"]) if run["id"] not in known]
        place = {index: len(self.runs) + position for position, index in enumerate(new)}
        self.runs += [document["runs"][index] for index in new]
        self.rows += [row | {"run": place[row["run"]]} for row in document["rows"] if row["run"] in place]

    def has(self, key: str) -> bool:
        """Whether this very row was measured, or tried and failed."""
        return key in self._known

    def append(self, part: str, name: str, key: str, found: dict[str, object], took_s: float) -> None:
        """Add a row and write the file."""
        place = {"part": part, "name": name, "key": key, "run": len(self.runs) - 1, "took_s": round(took_s, 1)}
        self.rows.append(place | found)
        self._known.add(key)
        self.run["left_out"].pop(f"{part}/{name}", None)
        self.write()

    def leave_out(self, row_id: str, reason: str) -> None:
        """Note that a row did not fit into this run."""
        self.run["left_out"][row_id] = reason
        self.write()

    def write(self) -> None:
        """Put the whole document in the place of the old one at once: a cut leaves one or the other."""
        document = {"schema": SCHEMA, "benchmark": "gpu", "runs": self.runs, "rows": self.rows}
        partial = self.path.with_name(f"{self.path.name}.partial")
        write_json(partial, document)
        os.replace(partial, self.path)


def at_most(value: float | None, limit: float) -> bool:
    """Whether a figure is there and no larger; a NaN is None in the JSON, and is no small error in either form."""
    return value is not None and value <= limit


def device_name(environment: dict[str, object]) -> str:
    """The GPU's name; "cpu" for a trial without one."""
    return environment["gpu"]["name"] if environment["gpu"] else "cpu"


def read(path: Path) -> dict[str, object]:
    """The document in a file.

    Raises:
        ResultsError: it is not JSON, or not one of `make gpu`.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as JSON: {error}; remove it, or write to another --out") from None
    if not isinstance(document, dict) or (document.get("benchmark"), document.get("schema")) != ("gpu", SCHEMA):
        raise ResultsError(f"{path} is not a file that `make gpu` wrote (schema {SCHEMA}): name another one")
    return document
