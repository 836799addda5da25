"""What the training ops launch, decided before anything is: as `plan.py` does for inference.

Tiles follow rules and no table: the products' operands pass through registers, and partials need tiles of 128 pixels.
Every plan takes `arch` (90 for sm_90) where it matters, and `types`: the element type of each pointer argument by name,
None for one that is left out.  The plans of sums over all pixels are in `split_plan.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from ....shapes import ConvShape, Pair, output_extent
from ....tuning.heuristics import ITEMSIZE, shared_bytes
from ..plan import _INT32_END, LaunchPlan, _input_end

Types = tuple[tuple[str, str | None], ...]

STATISTICS_TILE = 128  # pixels to a row of partials
_GROUP_M = 8


@dataclass(frozen=True)
class Residual:
    """The (C, H, W) of what a block's tail adds, subsampled by `stride`."""

    extents: tuple[int, int, int]
    stride: int = 1

    def is_option_a(self, k: int) -> bool:
        return self.stride != 1 or self.extents[0] != k


def _precision(dtype: str) -> str:
    return "tf32" if dtype == "tfloat32" else "ieee"


def _power_of_two(extent: int, most: int) -> int:
    return min(most, max(16, 1 << (extent - 1).bit_length()))


def _step(depth: int, taps: int, dtype: str) -> int:
    """The largest K-step of at most 128 bytes that divides `depth` and is not all of it and its `taps`, since a single
    step has nothing to overlap its loads with; where none does, half of 128 bytes."""
    widest = 16 if dtype == "float32" else 128 // ITEMSIZE[dtype]
    steps = (step for step in (64, 32, 16) if step <= widest and depth % step == 0 and step < depth * taps)
    return next(steps, max(16, widest // 2))


def _stages(arch: int, elements: int, dtype: str) -> int:
    """Up to three steps of `elements` in flight, beside 34 KiB in which a transformed tile changes hands."""
    return max(1, min(3, (shared_bytes(arch) - (34 << 10)) // (elements * ITEMSIZE[dtype])))


def _has_wgmma(arch: int, dtype: str) -> bool:
    """Whether accumulators and operands leave the registers free for more: wgmma, or tcgen05 with its own memory."""
    return 90 <= arch < 120 and dtype != "float32"


def _gemm(
    columns: int, depth: int, taps: int, dtype: str, arch: int, maps: int = 1
) -> tuple[dict[str, int | str], dict[str, int]]:
    """Constants and options of a GEMM whose rows are pixels, whose left operand is of `maps` maps of `depth` channels
    at `taps` pixels."""
    block_n = _power_of_two(columns, 64 if dtype == "float32" else 128)
    block_k = _step(depth, taps, dtype)
    # elements gathered one by one need registers for their addresses
    warps = 8 if block_n >= 128 or dtype == "float32" or depth % block_k else 4
    tile = {"BLOCK_M": STATISTICS_TILE, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": _GROUP_M}
    stages = _stages(arch, (maps * STATISTICS_TILE + block_n) * block_k, dtype)
    return tile | {"PRECISION": _precision(dtype)}, {"num_warps": warps, "num_stages": stages}


def _geometry(shape: ConvShape) -> dict[str, int]:
    return {
        "C": shape.c, "K": shape.k, "R": shape.r, "S": shape.s, "STRIDE_H": shape.stride.h, "STRIDE_W": shape.stride.w,
        "PAD_H": shape.padding.h, "PAD_W": shape.padding.w,
    }  # fmt: skip


def _extents(shape: ConvShape) -> dict[str, int]:
    return {"N": shape.n, "H": shape.h, "W": shape.w, "P": shape.p, "Q": shape.q}


def input_of(shape: ConvShape) -> ConvShape:
    """The 1x1 convolution `shape` with as many filters as channels: what its Gram matrix reads, and how."""
    return replace(shape, k=shape.c)


def output_of(shape: ConvShape) -> ConvShape:
    """The 1x1 convolution `shape` as a product of stride 1 over its output's pixels."""
    return replace(shape, h=shape.p, w=shape.q, stride=Pair(1, 1))


def tiles_of(rows: int) -> int:
    """Rows of partials that `rows` pixels leave."""
    return -(-rows // STATISTICS_TILE)


def dgrad_tiles(shape: ConvShape) -> int:
    """Tiles of 128 input pixels, each within one phase of the stride."""
    lines, columns = -(-shape.h // shape.stride.h), -(-shape.w // shape.stride.w)
    return shape.stride.h * shape.stride.w * tiles_of(shape.n * lines * columns)


def _residual(residual: Residual | None, k: int, p: int, q: int, rows: int):
    """The residual's scalars and constants, and an end of the offsets computed into it."""
    channels, height, width = residual.extents if residual else (k, 1, 1)
    option_a = residual is not None and residual.is_option_a(k)
    constants = {"RES_STRIDE": residual.stride if residual else 1, "OPTION_A": option_a}
    images = rows // (p * q) + 1
    return {"RES_H": height, "RES_W": width, "RES_C": channels}, constants, images * height * width * channels


@functools.lru_cache(maxsize=4096)
def plan_conv_stats(shape: ConvShape, dtype: str, arch: int, types: Types) -> LaunchPlan:
    """An ungrouped, undilated convolution with its norm prologue and statistics epilogue."""
    tile, options = _gemm(shape.k, shape.c, shape.r * shape.s, dtype, arch)
    tiles = tiles_of(shape.gemm_m)
    rows = tiles * STATISTICS_TILE
    wide = max(_input_end(shape, rows), rows * shape.k) >= _INT32_END
    grid = tiles * -(-shape.k // tile["BLOCK_N"])
    constants = _geometry(shape) | tile | {"WIDE": wide}
    return LaunchPlan("conv_stats", dict(types), _extents(shape), constants, grid, **options)


@functools.lru_cache(maxsize=4096)
def plan_conv_bn_add_act(
    shape: ConvShape, dtype: str, arch: int, types: Types, residual: Residual | None, relu: bool
) -> LaunchPlan:
    """A 1x1 convolution with its norm prologue, and BN, shortcut and ReLU as its epilogue."""
    tile, options = _gemm(shape.k, shape.c, 1, dtype, arch)
    tiles = tiles_of(shape.gemm_m)
    rows = tiles * STATISTICS_TILE
    scalars, constants, end = _residual(residual, shape.k, shape.p, shape.q, rows)
    geometry = {"C": shape.c, "K": shape.k, "STRIDE_H": shape.stride.h, "STRIDE_W": shape.stride.w}
    constants |= geometry | tile | {"RES_C": scalars.pop("RES_C"), "RELU": relu}
    constants["WIDE"] = max(_input_end(shape, rows), rows * shape.k, end) >= _INT32_END
    grid = tiles * -(-shape.k // tile["BLOCK_N"])
    return LaunchPlan("conv_bn_add_act", dict(types), _extents(shape) | scalars, constants, grid, **options)


@functools.lru_cache(maxsize=4096)
def plan_conv_dgrad(shape: ConvShape, dtype: str, arch: int, types: Types, skip_stride: int = 1) -> LaunchPlan:
    """The gradient of a convolution's input; the skip's lies at every skip_stride-th pixel of it."""
    tile, options = _gemm(shape.c, shape.k, shape.r * shape.s, dtype, arch, maps=2)
    options["num_warps"] = 8  # g and z of a step in the registers of four warps would leave too few for the epilogue
    tiles = dgrad_tiles(shape)
    # a tile may run past the last image, and its taps past an image's edges
    images = shape.n + 2 + STATISTICS_TILE * shape.stride.h * shape.stride.w // (shape.h * shape.w)
    output = (shape.p + shape.r) * (shape.q + shape.s) * shape.k
    inputs = (shape.h + shape.stride.h) * (shape.w + shape.stride.w) * shape.c
    wide = images * max(output, inputs) >= _INT32_END
    grid = tiles * -(-shape.c // tile["BLOCK_N"])
    constants = _geometry(shape) | tile | {"SKIP_STRIDE": skip_stride, "WIDE": wide}
    return LaunchPlan("conv_dgrad", dict(types), _extents(shape), constants, grid, **options)


@functools.lru_cache(maxsize=4096)
def plan_gram_finish(rows: int, c: int, dtype: str, arch: int, types: Types) -> LaunchPlan:
    """t + (a - center) @ quadratic + constant over `rows` pixels of C channels."""
    tiles = tiles_of(rows)
    wide = tiles * STATISTICS_TILE * c >= _INT32_END
    half = ITEMSIZE[dtype] == 2
    roomy = half and _has_wgmma(arch, dtype)
    # beside the products the epilogue holds t and z, of which a step has one: eight warps, and narrower for 4 bytes,
    # for 64-bit offsets, and where the operands of mma are in registers
    tile, options = _gemm(c if roomy and not wide else min(c, 64), c, 1, dtype, arch)
    if half:
        # a step's channels meet two rows of the matrix each, of its leading and of its trailing bits; mma takes both
        # operands from registers, several steps' where ptxas unrolls them
        tile["BLOCK_K"] = min(tile["BLOCK_K"], 32 if roomy else 16)
    options["num_warps"] = 8
    constants = {"C": c, "PARTS": 2 if half else 1, "WIDE": wide} | tile
    grid = tiles * -(-c // tile["BLOCK_N"])
    return LaunchPlan("conv_gram_finish", dict(types), {"ROWS": rows}, constants, grid, **options)


def _pass(kernel: str, types: Types, scalars, constants, rows: int, channels: int, block_m: int, end: int = 0):
    """A pass over `rows` pixels in tiles of block_m pixels."""
    block_n = _power_of_two(channels, 64)
    tiles = -(-rows // block_m)
    wide = max(end, tiles * block_m * channels) >= _INT32_END
    constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "WIDE": wide} | constants
    warps = max(1, min(8, block_m * block_n // 512))
    return LaunchPlan(kernel, dict(types), scalars, constants, tiles * -(-channels // block_n), warps)


@functools.lru_cache(maxsize=4096)
def plan_rows(kernel: str, rows: int, k: int, types: Types) -> LaunchPlan:
    """`channel_stats`, `bn_act_backward` or `bn_backward_apply` over (rows, K)."""
    return _pass(kernel, types, {"ROWS": rows, "K": k}, {}, rows, k, STATISTICS_TILE)


@functools.lru_cache(maxsize=4096)
def plan_bn_add_act(n: int, p: int, q: int, k: int, types: Types, residual: Residual | None, relu: bool) -> LaunchPlan:
    """act(z * scale + shift + shortcut) over (N, P, Q, K)."""
    rows = n * p * q
    scalars, constants, end = _residual(residual, k, p, q, rows + STATISTICS_TILE)
    scalars |= {"N": n, "P": p, "Q": q, "K": k}
    return _pass("bn_add_act", types, scalars, constants | {"RELU": relu}, rows, k, STATISTICS_TILE // 2, end)


@functools.lru_cache(maxsize=1024)
def plan_bn_pool(
    n: int, h: int, w: int, k: int, window: tuple[int, int, int], types: Types, backward: bool
) -> LaunchPlan:
    """BN, ReLU and max pooling of z (N, H, W, K) in one pass, or the way back; window: (kernel, stride, padding)."""
    kernel, stride, padding = window
    p, q = (output_extent(extent, kernel, stride, padding) for extent in (h, w))
    scalars = {"N": n, "H": h, "W": w, "P": p, "Q": q, "K": k}
    constants = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding}
    images = n + 2 + STATISTICS_TILE // (p * q)
    end = images * (h + kernel) * (w + kernel) * k
    if backward:
        return _pass("bn_relu_maxpool_backward", types, scalars, constants, n * h * w, k, STATISTICS_TILE, end)
    return _pass("bn_relu_maxpool", types, scalars, constants, n * p * q, k, STATISTICS_TILE // 2, end)


@functools.lru_cache(maxsize=4096)
def plan_bn_finalize(tiles: int, k: int, eps: float, types: Types) -> LaunchPlan:
    """Mean, variance, invstd, scale and shift from (tiles, 3, K) partials: a sector of channels a program."""
    scalars = {"eps": float(eps), "TILES": tiles, "K": k}
    return LaunchPlan("bn_finalize", dict(types), scalars, {"BLOCK_M": 128, "BLOCK_N": 8}, -(-k // 8))
