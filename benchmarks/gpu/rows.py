"""What `make gpu` measures, as rows in an order, each with the time it is expected to take, and the loop over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fused_resnet.backends import unavailable_reason

from .results import Results

PARTS = ("micro", "tests", "baselines", "inference", "training", "layers", "tune")
OURS = ("tests", "inference", "training", "layers", "tune")  # parts that run this package's kernels
HALF_ONLY = ("cuda",)  # backends of float16 and bfloat16
STOPPED = "stopped"  # how the status of a row begins that did not end within its limit
LIMIT_FACTOR, LIMIT_FLOOR_S = 4.0, 60.0  # a row that takes longer than this is stopped, so that it costs no other


@dataclass(frozen=True)
class Settings:
    """How large the measurements are; the same for every process of a run, and the same rows follow from it.

    Args:
        device: "cuda"; "cpu" is for trying the runner out, and its file is refused by `benchmarks.gpu.report`.
        models: builders, the most important first.
        batches: of inference, the most important first.
        train_batch, error_batch: of a training step that is timed, and of one compared with float64.
        seconds: of timing for each comparison; of a layer, a fifth of it.
        backends: of fused_resnet's ops, asked for by name where the machine has them.
        networks: those of them that have every op of a network, asked for by name beside `auto`.
        compile: measure torch.compile too, which takes minutes a row.
        folder: for what a row leaves beside the JSON (tuning tables); made when needed.
        commit: what is measured, where it is known.
    """

    device: str = "cuda"
    models: tuple[str, ...] = ("resnet50", "resnet18")
    batches: tuple[int, ...] = (256, 1, 32)
    train_batch: int = 256
    error_batch: int = 16
    size: int = 224
    seconds: float = 6.0
    rounds: int = 200
    repeats: int = 100
    matrix: int = 8192
    copy_bytes: int = 2**32
    backends: tuple[str, ...] = ("triton", "cuda")
    networks: tuple[str, ...] = ("triton", "cuda")
    compile: bool = True
    folder: str = "."
    commit: str | None = None

    def available(self, names: tuple[str, ...]) -> list[str]:
        """Those of `names` that this machine can run."""
        return [name for name in names if unavailable_reason(name) is None]

    def networks_in(self, dtype_name: str) -> list[str]:
        """The backends that run a whole network in this dtype, here."""
        wide = dtype_name in ("float32", "tfloat32")
        return [name for name in self.available(self.networks) if not (wide and name in HALF_ONLY)]


TINY = Settings(
    device="cpu",
    models=("resnet18",),
    batches=(1,),
    train_batch=2,
    error_batch=2,
    size=32,
    seconds=0.0,
    rounds=1,
    repeats=2,
    matrix=64,
    copy_bytes=2**16,
    backends=("reference",),
    networks=("reference",),
    compile=False,
)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        part: one of PARTS.
        name: unique within its part.
        make: measures it within the seconds it is given; returns what goes into the JSON.
        expected_s: seconds that it may take, a guess until the JSON says what it took.
        stands_for: the names of the run's fingerprints that it depends on: another driver, other sources or other
            tests make it a row that was not measured yet.
        later: 0 for the rows that tell most; 1 behind those of every part; 2 behind those too.
        apart: it starts programs of its own and ends them in time: it needs no worker that can be stopped.
    """

    part: str
    name: str
    make: Callable[[float], dict[str, object]]
    expected_s: float
    stands_for: tuple[str, ...] = ("machine",)
    later: int = 0
    apart: bool = False

    @property
    def id(self) -> str:
        return f"{self.part}/{self.name}"

    def key(self, fingerprints: dict[str, str]) -> str:
        """The row together with what its result depends on."""
        return "@".join([self.id, *(f"{name}={fingerprints[name]}" for name in self.stands_for)])


def ordered(rows: Iterable[Row], parts: Sequence[str]) -> list[Row]:
    """The rows of `parts`: those that tell most, part by part in the order of PARTS, then those that can wait."""
    chosen = [row for row in rows if row.part in parts]
    return sorted(chosen, key=lambda row: (row.later, PARTS.index(row.part)))


@dataclass
class Outcome:
    """What became of a run's rows, by id."""

    measured: list[str]
    known: list[str]
    left_out: list[str]


def execute(
    rows: Sequence[Row],
    results: Results,
    measure: Callable[[Row, float], dict[str, object]],
    seconds: float,
    *,
    again: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Measure every row that is not in `results` and fits into what is left of `seconds`, in the order given.

    Args:
        measure: (row, limit in seconds) -> what goes into the JSON; it raises only when the run must end.
        again: prefixes of ids that are measured although they are in `results`.
    """
    deadline, outcome = clock() + seconds, Outcome([], [], [])
    for row in rows:
        if results.has(row.key(results.fingerprints)) and not row.id.startswith(tuple(again)):
            outcome.known.append(row.id)
            continue
        left = deadline - clock()
        if row.expected_s > left:
            outcome.left_out.append(row.id)
            results.leave_out(row.id, f"expected to take {row.expected_s:.0f} s, {max(0.0, left):.0f} s were left")
            tell(f"{row.id}: left out, expected to take {row.expected_s:.0f} s with {max(0.0, left):.0f} s left")
            continue
        started, limit = clock(), max(LIMIT_FLOOR_S, LIMIT_FACTOR * row.expected_s)
        found = measure(row, min(limit, left))
        if found["status"].startswith(STOPPED) and left < limit:  # by the end of the run, which says nothing of the row
            outcome.left_out.append(row.id)
            results.leave_out(row.id, f"not done when the run's time was over, after {left:.0f} s")
            tell(f"{row.id}: left out, not done when the run's time was over")
            continue
        results.append(row.part, row.name, row.key(results.fingerprints), found, clock() - started)
        outcome.measured.append(row.id)
        tell(f"{row.id}: {found['status']}, {clock() - started:.1f} s")
    return outcome
