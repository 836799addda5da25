"""Everything on the GPU in one command: tests, micro-tests, baselines, ours beside them, layers, tuning; one JSON.

    make gpu                                              # at most nine minutes, the most telling rows first
    make gpu ARGS="--only tests micro"
    python -m benchmarks.gpu --only inference training --out FILE --commit SHA
    python -m benchmarks.gpu --list                       # what would be measured, here and now

Rows are written as they are measured; a later run takes over what is there and measures what is missing, or what our
sources, the tests or the machine have changed since.  What does not fit into --seconds is left out and named.
`python -m benchmarks.gpu.report FILE` makes the tables.
Exit status: 0; 1 when a test, a check or one of our rows failed; 2 without a GPU, or when an argument cannot be used.
"""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..record.environment import ROOT, environment, graphics, headline
from . import tests
from .plan import order_of, plan_for, problems
from .results import Results, ResultsError
from .rows import OURS, PARTS, TINY, Outcome, Row, Settings, execute
from .worker import Worker, measured

FOLDER = ROOT / "benchmarks" / "results" / "gpu"
SECONDS = 540.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    add("--out", type=Path, help="the JSON file (default: benchmarks/results/gpu/<device>.json)")
    add("--resume", type=Path, nargs="*", help="files whose rows are taken over (default: the default of --out)")
    add("--seconds", type=float, default=SECONDS, help=f"time for everything (default: {SECONDS:.0f})")
    add("--again", nargs="+", default=[], metavar="PREFIX", help="measure rows again whose PART/NAME starts so")
    add("--commit", help="the commit that is measured, where there is no git (a copied working tree)")
    add("--list", action="store_true", help="print the rows and the seconds each is expected to take, and stop")
    add("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)  # cpu: to try the runner out
    return arguments


def refusal(options: argparse.Namespace) -> str | None:
    """Why nothing can be measured with these options here, or None."""
    if options.seconds <= 0:
        return f"--seconds {options.seconds}: expected more than 0"
    if options.device == "cuda" and not torch.cuda.is_available():
        return f"it measures a CUDA GPU, and torch {torch.__version__} sees none here; nothing was written"
    if options.device == "cpu" and options.out is None:
        return "a trial on a CPU is no result, and needs an --out of its own"
    return None


def slug(name: str) -> str:
    """A device's name as a file's: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def recorded_environment(options: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Where this is and what is measured; the commit as told where git does not know."""
    found = environment(device)
    if options.commit and found["commit"]["sha"] is None:
        found["commit"] = {"sha": options.commit, "dirty": None}
    return found


def opened(options: argparse.Namespace, settings: Settings) -> Results:
    """The results file with what is taken over into it."""
    recorded = recorded_environment(options, torch.device(settings.device))
    default = FOLDER / f"{slug(recorded['gpu']['name'])}.json" if recorded["gpu"] else None
    resume = options.resume if options.resume is not None else [default] if default else []
    command = ["python", "-m", "benchmarks.gpu", *sys.argv[1:]]
    return Results(options.out or default, recorded, command, resume)


def run(
    options: argparse.Namespace,
    settings: Settings,
    plan: Callable[[Settings], Sequence[Row]],
    build: Callable[[], dict[str, object]] | None,
) -> tuple[Results, Outcome]:
    """Build in place where `build` is given and ours is wanted, then measure what was asked for and is not known."""
    started = time.monotonic()
    results = opened(options, settings)
    sha = results.run["environment"]["commit"]["sha"]
    settings = dataclasses.replace(settings, folder=str(results.path.parent), commit=sha)
    if build is not None and set(options.only) & set(OURS):
        results.run["build"] = build()
        results.write()
    rows = order_of(plan(settings), options.only, results.rows)
    left = options.seconds - (time.monotonic() - started)
    if settings.device == "cpu":
        outcome = execute(rows, results, measured, left, again=options.again)
    else:
        with Worker(plan, settings) as worker:
            outcome = execute(rows, results, worker, left, again=options.again)
        # Under load the clocks are others than before it.
        results.run["gpu_at_end"] = graphics(torch.device(settings.device))
    results.run["seconds"] = round(time.monotonic() - started, 1)
    results.write()
    return results, outcome


def wrong_in(results: Results) -> list[str]:
    """What failed in the last run, the build first."""
    last = len(results.runs) - 1
    build = results.run.get("build", {"status": "ok"})["status"]
    found = [f"build: {build}"] if build != "ok" else []
    return found + [text for row in results.rows if row["run"] == last for text in problems(row)]


def show_plan(options: argparse.Namespace, settings: Settings) -> None:
    """The rows in order, and what they are expected to take together."""
    rows = order_of(plan_for(options.only)(settings), options.only, [])
    for row in rows:
        print(f"{row.expected_s:6.0f} s  {row.id}")
    print(f"{sum(row.expected_s for row in rows):6.0f} s  expected in all, of {options.seconds:.0f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(argv)
    settings = TINY if options.device == "cpu" else Settings()
    if options.list:
        show_plan(options, settings)
        return 0
    reason = refusal(options)
    if reason is not None:
        print(f"benchmarks.gpu: {reason}", file=sys.stderr)
        return 2
    try:
        build = None if options.device == "cpu" else tests.build
        results, outcome = run(options, settings, plan_for(options.only), build)
    except ResultsError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    print(headline(results.run["environment"]))
    print(f"{len(outcome.measured)} rows measured, {len(outcome.known)} known before, {len(outcome.left_out)} left out")
    print(f"written: {results.path}")
    wrong = wrong_in(results)
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
