"""Tuning tables: JSON files under tables/sm_<arch>/<op>.json, and the lookup in them.

    {"schema": 1, "op": "conv_scale_shift_act", "arch": 90,
     "entries": {"bfloat16": {"<ConvShape.key()>": {
        "algorithm": "implicit_gemm_tma", "tile": {"block_m": 128, ...} or null,
        "microseconds": 41.2, "device": "...", "date": "YYYY-MM-DD", "commit": "..."}}}}

FUSED_RESNET_TUNING_DIR names a directory to use in the place of the package's own.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..shapes import ConvShape
from .config import Choice, TileConfig, TuningTableError
from .heuristics import ITEMSIZE, default

SCHEMA = 1
DIRECTORY_VARIABLE = "FUSED_RESNET_TUNING_DIR"
_TABLE_FIELDS = {"schema", "op", "arch", "entries"}
_PROVENANCE_FIELDS = {"device", "date", "commit"}
_ENTRY_FIELDS = {"algorithm", "tile", "microseconds"} | _PROVENANCE_FIELDS

_SHIPPED = str(Path(__file__).with_name("tables"))
_forced: ContextVar[Choice | None] = ContextVar("forced tuning choice", default=None)


def _root() -> str:
    return os.environ.get(DIRECTORY_VARIABLE) or _SHIPPED


def table_path(op: str, arch: int) -> Path:
    """Where the table of `op` on sm_`arch` lies, whether or not it is there."""
    return Path(_root()) / f"sm_{arch}" / f"{op}.json"


def lookup(op: str, arch: int, dtype: str, shape: ConvShape) -> Choice:
    """How to run `op` for `shape` on sm_`arch`: the table's measured choice, else `heuristics.default`.

    Args:
        op: name of a raw op.
        arch: compute capability, 90 for 9.0.
        dtype: "float16", "bfloat16", "float32", or "tfloat32" for float32 with tf32 allowed.

    Raises:
        TuningTableError: the table does not parse; the message names the file and the entry.
    """
    return _forced.get() or _lookup(_root(), op, arch, dtype, shape)


@functools.lru_cache(maxsize=4096)
def _lookup(root: str, op: str, arch: int, dtype: str, shape: ConvShape) -> Choice:
    """`lookup` in the tables under `root`, remembered: a convolution is looked up at every call of its op."""
    measured = read_table(table_path(op, arch)).get((dtype, shape.key()))
    return measured or default(arch, dtype, shape)


@contextmanager
def forced(choice: Choice) -> Iterator[None]:
    """Makes every `lookup` within the block return `choice`: for the tuner, which times candidates, and for tests."""
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)


@functools.cache
def read_table(path: Path) -> dict[tuple[str, str], Choice]:
    """The choices of a table by (dtype, shape key); none for a file that is not there.

    Raises:
        TuningTableError: as `lookup`.
    """
    if not path.exists():
        return {}
    return {key: _choice(path, key, entry) for key, entry in read_entries(path).items()}


def read_entries(path: Path) -> dict[tuple[str, str], dict]:
    """The unparsed entries of a table by (dtype, shape key), its frame checked."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TuningTableError(f"tuning table {path} is not JSON: {error}; delete it or tune again") from None
    if not isinstance(table, dict) or set(table) != _TABLE_FIELDS or not isinstance(table["entries"], dict):
        found = sorted(table) if isinstance(table, dict) else type(table).__name__
        raise TuningTableError(f"tuning table {path} must hold exactly {sorted(_TABLE_FIELDS)}, got {found}")
    if table["schema"] != SCHEMA:
        raise TuningTableError(f"tuning table {path} has schema {table['schema']!r}, expected {SCHEMA}; tune again")
    if (table["op"], f"sm_{table['arch']}") != (path.stem, path.parent.name):
        raise TuningTableError(f"tuning table {path} says it is for {table['op']!r} on sm_{table['arch']}: misplaced")
    entries = {}
    for dtype, by_shape in table["entries"].items():
        if dtype not in ITEMSIZE or not isinstance(by_shape, dict):
            raise TuningTableError(f"tuning table {path}: dtype {dtype!r} is not one of {', '.join(ITEMSIZE)}")
        entries |= {(dtype, key): entry for key, entry in by_shape.items()}
    return entries


def _choice(path: Path, key: tuple[str, str], entry: object) -> Choice:
    where = f"tuning table {path}, entry {' / '.join(key)}"
    if not isinstance(entry, dict) or set(entry) != _ENTRY_FIELDS:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise TuningTableError(f"{where}: must hold exactly {sorted(_ENTRY_FIELDS)}, got {found}")
    time = entry["microseconds"]
    if not isinstance(time, (int, float)) or not time > 0:
        raise TuningTableError(f"{where}: microseconds must be a positive number, got {time!r}")
    missing = [name for name in sorted(_PROVENANCE_FIELDS) if not isinstance(entry[name], str) or not entry[name]]
    if missing:
        raise TuningTableError(f"{where}: {', '.join(missing)} must say where the entry was measured")
    try:
        tile = None if entry["tile"] is None else TileConfig(**entry["tile"])
        return Choice(entry["algorithm"], tile, measured=True)
    except (TypeError, ValueError) as error:
        raise TuningTableError(f"{where}: {error}") from None


def write_table(op: str, arch: int, entries: dict[tuple[str, str], dict]) -> Path:
    """Merge `entries` into the table of `op` on sm_`arch`, new ones winning, and return its path."""
    path = table_path(op, arch)
    merged = (read_entries(path) if path.exists() else {}) | entries
    for key, entry in merged.items():
        _choice(path, key, entry)
    nested: dict[str, dict] = {}
    for (dtype, shape_key), entry in sorted(merged.items()):
        nested.setdefault(dtype, {})[shape_key] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps({"schema": SCHEMA, "op": op, "arch": arch, "entries": nested}, indent=1) + "\n")
    partial.replace(path)
    forget()
    return path


def forget() -> None:
    """Reads the tables anew at the next lookup: for a file that was written by another process."""
    read_table.cache_clear()
    _lookup.cache_clear()
