"""What this machine can do at best, measured: a large matrix product and a large copy."""

import math
from collections.abc import Callable

import torch

from . import timing


def _best(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest of the calls that fit into `seconds`, two of them at least, after one to warm up."""
    call()
    timed = timing.interleave(
        {"call": call}, seconds=seconds, timer=timing.timer_for(device), min_rounds=2, max_rounds=100
    )
    if timed.errors:
        raise RuntimeError(f"the ceiling could not be measured: {timed.errors['call']}")
    return min(timed.samples["call"])


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float = 4.0, scale: float = 1.0) -> dict[str, float]:
    """Peak TFLOP/s of a square matrix product in `dtype` and peak TB/s (read plus written) of a copy on `device`.

    `scale` shrinks the operands; below 1 the figures are those of caches and small products, for trying things out.
    """
    cuda = device.type == "cuda"
    extent = max(64, int((8192 if cuda else 2048) * scale))
    a, b = (torch.randn(extent, extent, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.empty(max(2**16, int(2 ** (30 if cuda else 28) * scale)), dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source).zero_()
    with torch.inference_mode():
        matmul_s = _best(lambda: torch.mm(a, b, out=product), device, seconds / 2)
        copy_s = _best(lambda: target.copy_(source), device, seconds / 2)
    found = {"tflops": 2 * extent**3 / matmul_s / 1e12, "tbs": 2 * source.numel() / copy_s / 1e12}
    assert all(math.isfinite(value) and value > 0 for value in found.values()), found
    return {**found, "matmul_extent": extent, "copy_bytes": source.numel()}
