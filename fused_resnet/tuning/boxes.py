"""Boxes of output pixels, the tiles of a convolution that loads through tensor descriptors (TMA)."""

from __future__ import annotations

import functools
from dataclasses import replace

from ..shapes import ConvShape

LARGEST_EXTENT = 256  # of a box, by the PTX ISA
MIN_BOX_UTILISATION = 7 / 8  # below it, loading pixel by pixel wastes less than empty places in boxes


def flattened(shape: ConvShape) -> ConvShape:
    """A 1x1 convolution of stride 1 as what it is, a matrix product: one image of one line; any other unchanged."""
    if shape.r == shape.s == 1 and shape.stride == (1, 1) and shape.padding == (0, 0):
        return replace(shape, n=1, h=1, w=shape.gemm_m)
    return shape


def fits_boxes(shape: ConvShape, block_k: int, itemsize: int) -> bool:
    """Whether a descriptor can load this convolution's input: rows of 16 bytes, and taps that are shifts of one box.

    Taps are shifts at stride 1; a strided 1x1 convolution has a single tap and reads a strided view.
    """
    shifts = shape.stride == (1, 1) or (shape.r == shape.s == 1 and shape.padding == (0, 0))
    plain = shape.groups == 1 and shape.dilation == (1, 1)
    return shifts and plain and shape.c % block_k == 0 and shape.c * itemsize % 16 == 0


@functools.cache
def box_of(shape: ConvShape, block_m: int) -> tuple[int, int, int]:
    """(images, lines, columns), powers of two with product `block_m`, that cover the output with the fewest boxes.

    Among equals the one with the most columns, then lines: neighbours share halos.
    """
    shape = flattened(shape)
    best = None
    columns = min(block_m, LARGEST_EXTENT)
    while columns:
        lines = min(block_m // columns, LARGEST_EXTENT)
        while lines:
            box = (block_m // columns // lines, lines, columns)
            count = _boxes(shape, box)
            if box[0] <= LARGEST_EXTENT and (best is None or count < best[0]):
                best = (count, box)
            lines //= 2
        columns //= 2
    return best[1]


def _boxes(shape: ConvShape, box: tuple[int, int, int]) -> int:
    images, lines, columns = box
    return -(-shape.n // images) * -(-shape.p // lines) * -(-shape.q // columns)


def box_utilisation(shape: ConvShape, block_m: int) -> float:
    """The part of all boxes' pixels that are output pixels, in (0, 1]."""
    return shape.gemm_m / (_boxes(flattened(shape), box_of(shape, block_m)) * block_m)
