"""Interleaved timing: every candidate is measured once a round, in an order drawn anew for each round.

A machine drifts (temperature, clocks, neighbours), so two candidates timed one after the other differ by more than what
separates them.  Round-robin puts every candidate under the same drift, and the random order takes away the advantage of
always running behind the same neighbour.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]


@dataclass
class Interleaved:
    """What `interleave` saw: seconds per call for each candidate, and the error of each one that failed on the way."""

    samples: dict[str, list[float]]
    errors: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0


def cpu_seconds(call: Call) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def cuda_seconds(call: Call) -> float:
    """Seconds between two CUDA events around one call on an idle device, so launch latency counts."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def timer_for(device: torch.device) -> Callable[[Call], float]:
    """The function that times one call on `device`."""
    return cuda_seconds if device.type == "cuda" else cpu_seconds


def describe(error: BaseException, limit: int = 300) -> str:
    """An exception as one line of text."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:limit]


def interleave(
    calls: dict[str, Call],
    *,
    seconds: float,
    timer: Callable[[Call], float] = cpu_seconds,
    min_rounds: int = 3,
    max_rounds: int = 200,
    pause: float = 0.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    before: Callable[[str], None] | None = None,
    on_round: Callable[[int, float], None] | None = None,
) -> Interleaved:
    """Time every call once a round until another round would not fit into `seconds`.

    Between `min_rounds` and `max_rounds` rounds are run.  Before each call, untimed, `pause` seconds pass, so that the
    worker threads of the library that ran before have stopped spinning, and `before(name)` is called.  A call that
    raises is taken out of the remaining rounds and reported in `errors`.  After each round follows
    `on_round(rounds done, fraction of the work done)`.
    """
    if min_rounds < 1 or max_rounds < min_rounds:
        raise ValueError(f"expected 1 <= min_rounds <= max_rounds, got {min_rounds} and {max_rounds}")
    order = random.Random(seed)
    result = Interleaved({name: [] for name in calls})
    started = last = clock()
    longest = 0.0
    while result.rounds < max_rounds:
        if result.rounds >= min_rounds and last - started + longest > seconds:
            break
        alive = [name for name in calls if name not in result.errors]
        order.shuffle(alive)
        for name in alive:
            if pause:
                sleep(pause)
            try:
                if before:
                    before(name)
                result.samples[name].append(timer(calls[name]))
            except Exception as error:  # one candidate's failure must not cost the others their run
                result.errors[name] = describe(error)
        result.rounds += 1
        now = clock()
        longest, last = max(longest, now - last), now
        result.seconds = now - started
        if on_round:
            spent = (now - started) / seconds if seconds else 1.0
            on_round(result.rounds, min(1.0, max(spent, result.rounds / max_rounds)))
    return result


def percentile(values: Sequence[float], fraction: float) -> float:
    """The `fraction` quantile of `values`, interpolated linearly between the two nearest ranks."""
    ranked = sorted(values)
    if not ranked:
        raise ValueError("percentile of no values")
    position = fraction * (len(ranked) - 1)
    low = int(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (position - low)


def summary(samples: Sequence[float]) -> dict[str, object]:
    """Median, 10th and 90th percentile and the raw samples, in milliseconds, from samples in seconds."""
    return {
        "median_ms": percentile(samples, 0.5) * 1e3,
        "p10_ms": percentile(samples, 0.1) * 1e3,
        "p90_ms": percentile(samples, 0.9) * 1e3,
        "samples_ms": [round(s * 1e3, 5) for s in samples],
    }
