"""The plans of sums of products over all pixels, which are split between programs: see `plan.py`.

Each program leaves a slice of partials, in float32 if not said otherwise; with a plan comes their number.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ....shapes import ConvShape
from ....tuning.heuristics import ITEMSIZE, shared_bytes
from ..plan import _INT32_END, LaunchPlan, _input_end
from .plan import Types, _extents, _geometry, _has_wgmma, _power_of_two, _precision, _stages

# Programs that a split over the pixels aims at: two for each of 132 multiprocessors.  The same everywhere, and for the
# tiles of the largest parts, so that the order of every sum, and with it a gradient, does not depend on the part.
_SPLIT_PROGRAMS = 264
_COLUMNS = 128  # a tile's, at most
_EXACT_BLOCK, _EXACT_PIXELS = 32, 8  # channels of a float64 tile, and pixels of a step: 32 products a thread in flight


@dataclass(frozen=True)
class Split:
    """How the pixels are shared: `splits` slices of float32 partials, each of `steps` steps of `block` pixels."""

    splits: int
    steps: int
    block: int


def split_of(pixels: int, tiles: int, block: int) -> Split:
    """Enough slices for the programs, `tiles` a slice, to fill a large GPU; of whole steps of `block` pixels."""
    total = -(-pixels // block)
    steps = -(-total // max(1, min(total, -(-_SPLIT_PROGRAMS // tiles))))
    return Split(-(-total // steps), steps, block)


def _products(
    kernel: str, shape: ConvShape, dtype: str, arch: int, types: Types, rows: int, columns: int, constants
) -> tuple[LaunchPlan, int]:
    """The plan of a sum of rows x columns products over all output pixels, and its number of slices."""
    widest = 64 if dtype == "float32" else _COLUMNS
    block_m = _power_of_two(rows, widest)
    divisors = (block for block in (128, 64, 32, 16) if block <= widest and shape.c % block == 0)
    block_n = next(divisors, _power_of_two(columns, 64))
    split = split_of(shape.gemm_m, -(-rows // block_m) * -(-columns // block_n), 64 if ITEMSIZE[dtype] == 2 else 32)
    # half of the tile's operands pass through registers on their way to shared memory
    warps = 8 if block_m * block_n >= 128 * 64 or dtype == "float32" or shape.c % block_n else 4
    if not _has_wgmma(arch, dtype):
        # mma takes both operands from registers, which then have no room for 128 x 128 sums
        block_n = min(block_n, 64)
    tiles = -(-rows // block_m) * -(-columns // block_n)
    pixels = split.splits * split.steps * split.block
    wide = max(_input_end(shape, pixels), pixels * shape.k) >= _INT32_END
    constants |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": split.block, "WIDE": wide}
    plan = LaunchPlan(
        kernel, dict(types), _extents(shape) | {"STEPS": split.steps}, constants | {"PRECISION": _precision(dtype)},
        tiles * split.splits, warps, _stages(arch, (2 * block_m + block_n) * split.block, dtype),
    )  # fmt: skip
    return plan, split.splits


@functools.lru_cache(maxsize=4096)
def plan_conv_wgrad(shape: ConvShape, dtype: str, arch: int, types: Types) -> tuple[LaunchPlan, int]:
    """The gradient of a convolution's weight, and the number of slices of partials."""
    return _products("conv_wgrad", shape, dtype, arch, types, shape.k, shape.gemm_k, _geometry(shape))


@functools.lru_cache(maxsize=4096)
def plan_gram(shape: ConvShape, dtype: str, arch: int, types: Types) -> tuple[LaunchPlan, int]:
    """The Gram matrix of x where the 1x1 convolution `shape` (K = C) reads it, and the number of slices of partials."""
    constants = {"C": shape.c, "STRIDE_H": shape.stride.h, "STRIDE_W": shape.stride.w}
    return _products("conv_gram", shape, dtype, arch, types, shape.c, shape.c, constants)


@functools.lru_cache(maxsize=4096)
def plan_gram_exact(shape: ConvShape, types: Types) -> tuple[LaunchPlan, int]:
    """The same sums in float64, which a flag in the device's memory asks for, and the number of slices of them: no more
    than there are programs, so that they are small beside any map that is worth splitting."""
    tiles = (-(-shape.c // _EXACT_BLOCK)) ** 2
    split = split_of(shape.gemm_m, tiles, _EXACT_PIXELS)
    wide = _input_end(shape, split.splits * split.steps * split.block) >= _INT32_END
    constants = {"C": shape.c, "STRIDE_H": shape.stride.h, "STRIDE_W": shape.stride.w}
    constants |= {"BLOCK": _EXACT_BLOCK, "BLOCK_K": _EXACT_PIXELS, "WIDE": wide}
    scalars = _extents(shape) | {"STEPS": split.steps}
    return LaunchPlan("conv_gram_exact", dict(types), scalars, constants, tiles * split.splits, 8, 1), split.splits


def _one_read_tile(c: int, k: int, dtype: str, arch: int) -> dict[str, int]:
    """Some pixels of all K filters, beside as many columns as leave registers for the products and room to load ahead.

    A program holds K x BLOCK_N sums in eight warps.  Few pixels a tile, so that dz is small beside them; wgmma does not
    mind, as pixels are the products' columns or depth, and never the rows."""
    narrow = ITEMSIZE[dtype] == 2
    block_m, block_k = 32 if narrow else 16, _power_of_two(k, 256)
    sums = (8192 if narrow else 4096) * (4 if _has_wgmma(arch, dtype) else 1)
    block_n = max(16, min(_COLUMNS, _power_of_two(c, _COLUMNS), sums // block_k))
    # tf32 operands cannot be transposed in shared memory: there are two copies of dz
    kept = block_k * block_n + block_k * block_m * (1 if narrow else 2)
    load = (2 * block_k + 3 * block_n) * block_m
    room = shared_bytes(arch) - (8 << 10)
    loads = max(1, min(3, 1 + (room // ITEMSIZE[dtype] - kept) // load))
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "LOADS": loads}


@functools.lru_cache(maxsize=4096)
def plan_one_read(
    shape: ConvShape, dtype: str, arch: int, types: Types, rectified: bool = False, skip_stride: int = 1
) -> tuple[LaunchPlan, int]:
    """Both gradients of the 1x1 convolution `shape` (a square stride) at its output's pixels, and its slices."""
    tile = _one_read_tile(shape.c, shape.k, dtype, arch)
    split = split_of(shape.gemm_m, -(-shape.c // _COLUMNS), tile["BLOCK_M"])
    pixels = split.splits * split.steps * split.block
    constants = {"C": shape.c, "K": shape.k, "STRIDE": shape.stride.h, "SKIP_STRIDE": skip_stride}
    wide = max(_input_end(shape, pixels), pixels * max(shape.k, shape.c)) >= _INT32_END
    constants |= tile | {"RECTIFIED": rectified, "WIDE": wide, "PRECISION": _precision(dtype)}
    scalars = _extents(shape) | {"STEPS": split.steps}
    grid = -(-shape.c // tile["BLOCK_N"]) * split.splits
    plan = LaunchPlan("conv_backward_1x1", dict(types), scalars, constants, grid, 8, tile["LOADS"])
    return plan, split.splits
