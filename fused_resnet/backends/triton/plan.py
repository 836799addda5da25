"""What is launched, decided before anything is: kernel, constants, grid and options, as plain data.

The launcher runs these plans and `python -m benchmarks.kernels` compiles them without a GPU; both get the same kernels.
Dtypes are names here ("bfloat16"; "tfloat32" is float32 with tf32 allowed), and nothing imports torch or triton.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from ...shapes import ConvShape, output_extent
from ...tuning import Choice
from ...tuning.boxes import box_of, fits_boxes, flattened
from ...tuning.heuristics import ITEMSIZE

_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "tfloat32": "fp32", "float64": "fp64"}
_INT32_END = 1 << 31


@dataclass(frozen=True)
class Box:
    """A tensor descriptor: extents and strides of what it shows, in elements, and the block it loads."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]


@dataclass(frozen=True)
class LaunchPlan:
    """One launch. `pointers` maps an argument to its element type ("bf16"), or to None for an operand left out."""

    kernel: str
    pointers: dict[str, str | None]
    scalars: dict[str, int | float]
    constexprs: dict[str, int | bool | str]
    grid: int
    num_warps: int = 4
    num_stages: int = 1
    boxes: dict[str, Box] = field(default_factory=dict)


@dataclass(frozen=True)
class Epilogue:
    """What follows the products: the vectors' dtypes, None for a missing one; the residual's (C, H, W); ReLU."""

    bn_weight: str | None = None
    bn_bias: str | None = None
    running_mean: str | None = None
    running_var: str | None = None
    eps: float = 0.0
    residual: tuple[int, int, int] | None = None
    residual_stride: int = 1
    relu: bool = True

    def pointers(self, element: str) -> dict[str, str | None]:
        vectors = ("bn_weight", "bn_bias", "running_mean", "running_var")
        types = {f"{name}_ptr": _TYPES.get(getattr(self, name)) for name in vectors}
        return types | {"residual_ptr": None if self.residual is None else element}

    def scalars(self) -> dict[str, int | float]:
        _, height, width = self.residual or (1, 1, 1)
        return {"eps": float(self.eps), "RES_H": height, "RES_W": width}

    def channels(self, k: int) -> dict[str, int]:
        return {"K": k, "RES_C": self.residual[0] if self.residual else k}

    def constexprs(self, k: int) -> dict[str, int | bool]:
        return {"RES_STRIDE": self.residual_stride, "OPTION_A": self.is_option_a(k), "RELU": self.relu}

    def is_option_a(self, k: int) -> bool:
        return self.residual is not None and (self.residual[0] != k or self.residual_stride != 1)

    def residual_end(self, p: int, q: int, rows: int) -> int:
        """An end of the offsets that `rows` pixels of P x Q outputs compute into the residual."""
        channels, height, width = self.residual or (0, 1, 1)
        return (rows // (p * q) + 1) * height * width * channels


def conv_kernel(choice: Choice, shape: ConvShape, dtype: str, arch: int, aligned: bool) -> str:
    """The kernel that can run `choice`: descriptors need sm_90, boxes that fit and bases of 16 bytes, else pointers;
    pointers need C to be a multiple of block_k, else runs of elements are loaded."""
    block_k = choice.tile.block_k
    by_descriptor = choice.algorithm == "implicit_gemm_tma" and arch >= 90 and aligned
    if by_descriptor and fits_boxes(shape, block_k, ITEMSIZE[dtype]):
        return "conv_tma"
    return "conv_runs" if shape.c % block_k else "conv_pointer"


@functools.lru_cache(maxsize=4096)
def plan_conv(
    shape: ConvShape, dtype: str, arch: int, choice: Choice, epilogue: Epilogue, aligned: bool = True
) -> LaunchPlan:
    """The launch of one ungrouped, undilated convolution with its epilogue.

    Args:
        aligned: x and weight start at multiples of 16 bytes.
    """
    kernel = conv_kernel(choice, shape, dtype, arch, aligned)
    tile = choice.tile
    if not epilogue.is_option_a(shape.k):
        shape = flattened(shape)
    if kernel == "conv_tma":
        loads, extents, geometry, tiles_m, rows = _boxed(shape, tile)
    else:
        loads, extents, geometry, tiles_m, rows = _pointed(shape, tile)
    element = _TYPES[dtype]
    ends = (
        _input_end(shape, rows),
        rows * shape.k,
        (shape.k + tile.block_n) * shape.gemm_k,
        epilogue.residual_end(shape.p, shape.q, rows),
    )
    operands = {} if loads else {"x_ptr": element, "w_ptr": element}
    return LaunchPlan(
        kernel,
        pointers=operands | {"y_ptr": element} | epilogue.pointers(element),
        scalars={"N": shape.n, "P": shape.p, "Q": shape.q} | extents | epilogue.scalars(),
        constexprs={
            "C": shape.c, "R": shape.r, "S": shape.s, "PAD_H": shape.padding.h, "PAD_W": shape.padding.w,
            "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": tile.group_m,
            "WIDE": max(ends) >= _INT32_END, "PRECISION": "tf32" if dtype == "tfloat32" else "ieee",
        } | geometry | epilogue.channels(shape.k) | epilogue.constexprs(shape.k),
        grid=tiles_m * -(-shape.k // tile.block_n),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        boxes=loads,
    )  # fmt: skip


def _input_end(shape: ConvShape, rows: int) -> int:
    """An end of the input offsets that `rows` rows of gemm_m compute, those beyond the last pixel included.

    The largest lies in the last row, or where the line or the image before it ended.
    """
    line, q = divmod(rows, shape.q)
    image, p = divmod(line, shape.p)
    furthest = ((image, p, q), (image, max(p - 1, 0), shape.q), (max(image - 1, 0), shape.p, shape.q))
    pixel = max((i * shape.h + j * shape.stride.h) * shape.w + k * shape.stride.w for i, j, k in furthest)
    return (pixel + (shape.r - 1) * shape.w + shape.s) * shape.c


def _pointed(shape: ConvShape, tile):
    extents = {"H": shape.h, "W": shape.w}
    geometry = {"STRIDE_H": shape.stride.h, "STRIDE_W": shape.stride.w, "BLOCK_M": tile.block_m}
    tiles_m = -(-shape.gemm_m // tile.block_m)
    return {}, extents, geometry, tiles_m, tiles_m * tile.block_m


def _boxed(shape: ConvShape, tile):
    """Boxes of pixels; a strided 1x1 convolution sees x through a strided view of P x Q pixels."""
    box = box_of(shape, tile.block_m)
    (stride_h, stride_w), c = shape.stride, shape.c
    strided = (stride_h, stride_w) != (1, 1)
    extents = (shape.n, shape.p, shape.q, c) if strided else (shape.n, shape.h, shape.w, c)
    strides = (shape.h * shape.w * c, stride_h * shape.w * c, stride_w * c, 1)
    loads = {
        "x_desc": Box(extents, strides, (*box, tile.block_k)),
        "w_desc": Box((shape.k, shape.gemm_k), (shape.gemm_k, 1), (tile.block_n, tile.block_k)),
    }
    counts = [-(-extent // side) for extent, side in zip((shape.n, shape.p, shape.q), box, strict=True)]
    geometry = dict(zip(("TILE_N", "TILE_P", "TILE_Q"), box, strict=True))
    rows = ((shape.n + box[0]) * shape.p + box[1]) * shape.q + box[2]
    return loads, {}, geometry, counts[0] * counts[1] * counts[2], rows


_ELEMENTS = 4096  # of a tile of the kernels that only move data: 32 a thread in four warps


def _moving_tile(rows: int, channels: int, elements: int = _ELEMENTS) -> dict[str, int]:
    """As many channels as there are, up to 128, and rows for the rest of the tile."""
    block_n = min(128, max(8, 1 << (channels - 1).bit_length()))
    block_m = min(elements // block_n, max(1, 1 << (rows - 1).bit_length()))
    return {"BLOCK_M": block_m, "BLOCK_N": block_n}


def _moving(
    kernel: str, pointers, scalars, constexprs, rows: int, channels: int, end: int, elements: int = _ELEMENTS
) -> LaunchPlan:
    tile = _moving_tile(rows, channels, elements)
    wide = max(end, (rows + tile["BLOCK_M"]) * channels) >= _INT32_END
    grid = -(-rows // tile["BLOCK_M"]) * -(-channels // tile["BLOCK_N"])
    return LaunchPlan(kernel, pointers, scalars, constexprs | tile | {"WIDE": wide}, grid)


@functools.lru_cache(maxsize=4096)
def plan_scale_shift_act(n: int, p: int, q: int, k: int, dtype: str, epilogue: Epilogue) -> LaunchPlan:
    """The pass after a convolution that was not ours, over (N, P, Q, K)."""
    element = _TYPES[dtype]
    pointers = {"z_ptr": element, "y_ptr": element} | epilogue.pointers(element)
    scalars = {"N": n, "P": p, "Q": q} | epilogue.scalars() | epilogue.channels(k)
    # rows beyond the last pixel are masked, but their offsets must not wrap
    end = epilogue.residual_end(p, q, n * p * q + _ELEMENTS)
    return _moving("scale_shift_act", pointers, scalars, epilogue.constexprs(k), n * p * q, k, end)


@functools.lru_cache(maxsize=1024)
def plan_option_a(n: int, h: int, w: int, c: int, k: int, stride: int, dtype: str) -> LaunchPlan:
    """The parameter-free shortcut of x (N, H, W, C) to K channels."""
    p, q = output_extent(h, 1, stride, 0), output_extent(w, 1, stride, 0)
    pointers = {"x_ptr": _TYPES[dtype], "y_ptr": _TYPES[dtype]}
    scalars = {"N": n, "H": h, "W": w, "P": p, "Q": q, "C": c, "K": k}
    end = (n + _ELEMENTS // (p * q) + 1) * h * w * c
    return _moving("option_a_shortcut", pointers, scalars, {"STRIDE": stride}, n * p * q, k, end)


@functools.lru_cache(maxsize=1024)
def plan_max_pool(n: int, h: int, w: int, c: int, kernel: int, stride: int, padding: int, dtype: str) -> LaunchPlan:
    """The square max pooling of x (N, H, W, C)."""
    p, q = (output_extent(extent, kernel, stride, padding) for extent in (h, w))
    pointers = {"x_ptr": _TYPES[dtype], "y_ptr": _TYPES[dtype]}
    scalars = {"N": n, "H": h, "W": w, "P": p, "Q": q, "C": c}
    constexprs = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding}
    end = (n + _ELEMENTS // (p * q) + 2) * h * w * c
    # half a tile: each element keeps its running maximum beside nine loads in flight
    return _moving("max_pool", pointers, scalars, constexprs, n * p * q, c, end, _ELEMENTS // 2)


@functools.lru_cache(maxsize=1024)
def plan_global_avg_pool(n: int, h: int, w: int, c: int, dtype: str) -> LaunchPlan:
    """The mean over the pixels of each image of x (N, H, W, C)."""
    tile = _moving_tile(h * w, min(c, 64))
    constexprs = {"STEPS": -(-h * w // tile["BLOCK_M"])} | tile
    wide = (n * h * w + tile["BLOCK_M"]) * c >= _INT32_END
    grid = n * -(-c // tile["BLOCK_N"])
    pointers = {"x_ptr": _TYPES[dtype], "y_ptr": _TYPES[dtype]}
    return LaunchPlan("global_avg_pool", pointers, {"PIXELS": h * w, "C": c}, constexprs | {"WIDE": wide}, grid)
