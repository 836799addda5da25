"""The default where nothing was tuned.  Reasoned, not measured: `Choice.measured` is False for all it returns.

The rules, each with its reason:
  * block_n covers K up to 128, so that most of ResNet's 1x1 convolutions read their input once or twice.
  * block_m is 128, and shrinks while the tiles are too few to give every multiprocessor one (small batches).
  * block_k is 128 bytes of channels, the widest row that shared memory swizzles, or the largest power of two in C;
    half of it where that would be all of gemm_k, since a single step cannot overlap its two loads.
  * eight warps where elements are loaded one by one (C not a multiple of 16): their addresses fill registers.
  * num_stages fills at most half of a multiprocessor's shared memory, for two blocks to overlap load and epilogue.
  * tensor descriptors, where tensor cores of sm_90 and newer take the operands from shared memory as they were loaded,
    unless boxes of pixels would leave more than an eighth of a tile empty.
"""

from __future__ import annotations

from ..shapes import ConvShape
from .boxes import MIN_BOX_UTILISATION, box_utilisation, fits_boxes
from .config import Choice, TileConfig

# dtype names: tfloat32 is float32 with cudnn.allow_tf32
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "tfloat32": 4}

# Shared memory that one block may have, and multiprocessors, of the largest part of each architecture
# (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; NVIDIA's architecture papers).
_SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227}
_SMALLEST_SHARED_KIB = 99
_MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148}
_TYPICAL_MULTIPROCESSORS = 108


def shared_bytes(arch: int) -> int:
    """Shared memory in bytes that one block may have on sm_`arch`; the least of any for an unknown one."""
    return _SHARED_KIB.get(arch, _SMALLEST_SHARED_KIB) << 10


def block_k_for(shape: ConvShape, widest: int) -> int:
    """The largest K-step up to `widest` that divides C, and is not all; where none divides, what pads S * C least."""
    steps = [step for step in (128, 64, 32, 16) if step <= widest]
    dividing = [step for step in steps if shape.c % step == 0]
    if dividing:
        return next((step for step in dividing if shape.gemm_k > step), dividing[-1])
    run = shape.s * shape.c
    return min(steps, key=lambda step: (-(-run // step) * step, -step))


def default_tile(arch: int, dtype: str, shape: ConvShape) -> TileConfig:
    """The tile of an implicit GEMM that nobody has tuned."""
    itemsize = ITEMSIZE[dtype]
    # full-precision float32 runs on FMA units from registers, where a wide accumulator leaves no room for operands
    block_m, widest_n = (64, 64) if dtype == "float32" else (128, 128)
    block_n = min(widest_n, max(16, 1 << (shape.k - 1).bit_length()))
    block_k = block_k_for(shape, 32 if dtype == "float32" or arch < 90 else 128 // itemsize)
    wanted = _MULTIPROCESSORS.get(arch, _TYPICAL_MULTIPROCESSORS)
    while block_m > 64 and -(-shape.gemm_m // block_m) * -(-shape.k // block_n) < wanted:
        block_m //= 2
    in_runs = shape.c % block_k != 0
    num_warps = 8 if block_m * block_n >= 128 * 128 or dtype == "float32" or in_runs else 4
    stage = (block_m + block_n) * block_k * itemsize
    num_stages = max(2, min(4, shared_bytes(arch) // 2 // stage))
    return TileConfig(block_m, block_n, block_k, num_warps, num_stages)


def default(arch: int, dtype: str, shape: ConvShape) -> Choice:
    """The untuned choice for one convolution on sm_`arch`; grouped and dilated ones are ATen's."""
    if shape.groups != 1 or shape.dilation != (1, 1):
        return Choice("aten")
    tile = default_tile(arch, dtype, shape)
    boxes = arch >= 90 and dtype != "float32" and fits_boxes(shape, tile.block_k, ITEMSIZE[dtype])
    if boxes and box_utilisation(shape, tile.block_m) >= MIN_BOX_UTILISATION:
        return Choice("implicit_gemm_tma", tile)
    return Choice("implicit_gemm", tile)
