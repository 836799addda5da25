"""Time of work that is too short for a launch from Python to hide behind it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..meters import timing
from ..subjects.candidates import captured

Call = Callable[[], object]


def repeated(call: Call, count: int, device: torch.device) -> Call:
    """`count` calls as one: on a GPU the replay of a CUDA graph, in which no launch waits for Python."""

    def several() -> None:
        for _ in range(count):
            call()

    return captured(several) if device.type == "cuda" else several


def repeats_for(call: Call, device: torch.device, target_s: float = 2e-3, most: int = 50) -> int:
    """How often to repeat a call for it to take about `target_s`: once where it takes longer by itself."""
    if device.type != "cuda":
        return 1
    call()
    return max(1, min(most, int(target_s / max(timing.cuda_seconds(call), 1e-6))))


def kernel_times(
    calls: dict[str, Call], device: torch.device, seconds: float, rounds: int, seed: int = 0
) -> dict[str, dict[str, object]]:
    """Milliseconds of each call without its launches, interleaved; a call that fails has an `error` instead.

    Returns:
        By name, `_timing.summary` and how many calls one sample is the mean of; or {"error": text}.
    """
    found, ready, counts = {}, {}, {}
    for name, call in calls.items():
        try:
            counts[name] = repeats_for(call, device)
            ready[name] = repeated(call, counts[name], device)
            ready[name]()
        except Exception as error:  # one of several ways failing must not cost the others
            found[name] = {"error": timing.describe(error)}
    timer = timing.timer_for(device)
    timed = timing.interleave(
        ready, seconds=seconds, timer=timer, min_rounds=min(3, rounds), max_rounds=rounds, seed=seed
    )
    for name in ready:
        if name in timed.errors:
            found[name] = {"error": timed.errors[name]}
        else:
            single = [sample / counts[name] for sample in timed.samples[name]]
            found[name] = timing.summary(single) | {"calls_a_sample": counts[name]}
    return found
