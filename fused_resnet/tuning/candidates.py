"""What the tuner tries for one convolution."""

from __future__ import annotations

import itertools

from ..shapes import ConvShape
from .boxes import MIN_BOX_UTILISATION, box_utilisation, fits_boxes
from .config import Choice, TileConfig
from .heuristics import ITEMSIZE, default, shared_bytes

# Float32 accumulators a thread may hold; beyond it the epilogue spills (see `python -m benchmarks.kernels`).
_MAX_ACCUMULATORS = 128
_MIN_ACCUMULATORS = 16


def candidates(arch: int, dtype: str, shape: ConvShape) -> list[Choice]:
    """ATen's convolution, the untuned default, and every tile that fits sm_`arch`, without repeats."""
    found = [Choice("aten")]
    first = default(arch, dtype, shape)
    if first.algorithm == "aten":
        return found
    found.append(first)
    itemsize = ITEMSIZE[dtype]
    rows = max(64, 1 << (shape.k - 1).bit_length())
    for block_m, block_n, block_k, warps, stages in itertools.product(
        (64, 128, 256), (64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4, 5)
    ):
        tile = TileConfig(block_m, block_n, block_k, warps, stages)
        held = block_m * block_n // (32 * warps)
        if block_n > rows or not _MIN_ACCUMULATORS <= held <= _MAX_ACCUMULATORS:
            continue
        if block_k * itemsize > 128 or (block_k != first.tile.block_k and shape.c % block_k):
            continue
        if tile.shared_bytes(itemsize) > shared_bytes(arch):
            continue
        found.append(Choice("implicit_gemm", tile))
        boxes = arch >= 90 and fits_boxes(shape, block_k, itemsize)
        if boxes and box_utilisation(shape, block_m) >= MIN_BOX_UTILISATION:
            found.append(Choice("implicit_gemm_tma", tile))
    return list(dict.fromkeys(found))
