"""Cases for the training ops: curated lists, one entry for each thing that can go wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fused_resnet.shapes import ConvShape

from .training_arguments import ARGUMENTS, OUTPUTS, Drawing


@dataclasses.dataclass(frozen=True)
class TrainingCase:
    """One call of `op` at a convolution's shape (ops without one use its output or, pooling and Gram, its input).

    with_: words for what may be left out, each explained where `training_arguments` builds the op's call.
    offset: added to the activations, for channels whose mean is large against their deviation.
    """

    op: str
    shape: ConvShape
    with_: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    layout: str = "channels_last"
    offset: float = 0.0

    @property
    def id(self) -> str:
        parts = [self.op, self.shape.key(), *self.with_, str(self.dtype).removeprefix("torch."), self.layout]
        return "-".join([*parts, f"offset{self.offset:g}"] if self.offset else parts)

    @property
    def outputs(self) -> tuple[str, ...]:
        names = OUTPUTS[self.op]
        sums = {"below", "block_sums"}.intersection(self.with_)
        return names[:1] if self.op == "conv_dgrad" and not sums else names

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        return ARGUMENTS[self.op](self, Drawing(self, device))


def _shape(n, c, h, w, k, kernel=1, stride=1, padding=0, dilation=1, groups=1) -> ConvShape:
    return ConvShape(n, c, h, w, k, kernel, kernel, stride, padding, dilation, groups)


_THREE = _shape(2, 16, 9, 11, 24, 3, padding=1)
_THREE_STRIDED = _shape(2, 16, 9, 12, 24, 3, 2, 1)
_ONE = _shape(2, 24, 9, 11, 40)
_ONE_STRIDED = _shape(2, 24, 9, 10, 40, stride=2)
_ODD = _shape(3, 5, 7, 13, 9, 3, padding=1)
_STEM = _shape(2, 3, 21, 18, 16, 7, 2, 3)
_RECTANGULAR = ConvShape(2, 8, 12, 17, 16, 3, 5, (2, 1), (1, 2))
_DILATED = _shape(2, 16, 10, 9, 24, 3, padding=2, dilation=2)
_GROUPED = _shape(2, 16, 10, 9, 24, 3, padding=1, groups=4)
_DOT = _shape(1, 1, 1, 1, 1)
_POOL = _shape(2, 16, 13, 11, 16, 3, 2, 1)
_POOL_OF_TWO = _shape(2, 5, 8, 10, 5, 2, 2)
_POOL_OVERLAP = _shape(1, 8, 7, 7, 8, 3, 1, 1)

CASES: tuple[TrainingCase, ...] = tuple(
    TrainingCase(op, shape, *rest)
    for op, *calls in (
        (
            "conv_stats",
            (_THREE, ("prologue",)),
            (_THREE, ()),
            (_THREE_STRIDED, ("prologue",)),
            (_ONE, ("prologue",)),
            (_ONE_STRIDED, ()),
            (_ODD, ("prologue",)),
            (_STEM, ()),
            (_RECTANGULAR, ("prologue",)),
            (_DILATED, ("prologue",)),
            (_GROUPED, ("prologue",)),
            (_DOT, ("prologue",)),
        ),
        ("channel_stats", (_THREE,), (_ODD,), (_DOT,), (_shape(1, 8, 16, 16, 8),)),
        ("bn_finalize", (_THREE,), (_THREE, ("bare",)), (_THREE, ("empty",)), (_DOT,), (_shape(7, 8, 16, 16, 12),)),
        (
            "gram",
            (_ONE, ("prologue",)),
            (_ONE, ()),
            (_ONE_STRIDED, ()),
            (_ONE_STRIDED, ("prologue",)),
            (_ODD,),
            (_DOT,),
        ),
        ("gram_finalize", (_ONE,), (_ONE, ("bare",)), (_shape(2, 5, 9, 11, 7),)),
        (
            "conv1x1_bn_add_act",
            (_ONE, ("prologue", "residual")),
            (_ONE, ("residual", "identity")),
            (_ONE_STRIDED, ("identity",)),
            (_ONE_STRIDED, ("prologue", "option_a")),
            (_DOT, ("prologue",)),
        ),
        (
            "bn_add_act",
            (_THREE, ("residual",)),
            (_THREE, ("residual", "identity")),
            (_THREE, ()),
            (_THREE_STRIDED, ("option_a",)),
            (_ODD, ("residual",)),
        ),
        (
            "conv_dgrad",
            (_THREE, ("below",)),
            (_THREE, ("below", "constant")),
            (_THREE, ("skip_out",)),
            (_THREE_STRIDED, ("below",)),
            (_THREE_STRIDED, ("skip",)),
            (_ONE, ("below", "skip_out")),
            (_ONE, ()),
            (_ONE_STRIDED, ("skip_out",)),
            (_ODD, ("below",)),
            (_RECTANGULAR, ("below", "skip")),
            (_STEM, ()),
            (_DOT, ("below",)),
            (_THREE, ("block", "skip")),
            (_THREE, ("block_sums", "skip_out")),
            (_THREE_STRIDED, ("block_sums", "skip", "skip_2")),
            (_ODD, ("block", "skip_out", "skip_2")),
        ),
        (
            "conv1x1_backward",
            (_ONE, ("rectified", "skip")),
            (_ONE, ("skip_out", "skip_2")),
            (_ONE, ("rectified", "skip", "skip_2")),
            (_ONE, ("constant",)),
            (_shape(3, 5, 7, 13, 9), ("rectified", "skip_out")),
            (_shape(1, 24, 5, 5, 200), ("rectified", "skip")),
            (_DOT, ("rectified",)),
        ),
        (
            "conv_wgrad",
            (_THREE, ("prologue",)),
            (_THREE, ("constant",)),
            (_THREE_STRIDED, ("prologue",)),
            (_ONE, ("prologue",)),
            (_ONE_STRIDED, ()),
            (_ODD, ("prologue",)),
            (_RECTANGULAR, ("prologue",)),
            (_STEM, ()),
            (_DOT, ("prologue",)),
        ),
        (
            "gram_products",
            (_ONE, ("prologue", "out")),
            (_ONE, ()),
            (_ONE_STRIDED, ("out",)),
            (_ONE_STRIDED, ("prologue",)),
            (_shape(3, 5, 7, 13, 9), ("prologue", "out")),
        ),
        ("gram_backward_finish", (_ONE, ("prologue",)), (_ONE, ()), (_shape(3, 5, 7, 13, 9), ("prologue",))),
        ("bn_relu_maxpool", (_POOL,), (_POOL_OF_TWO,), (_POOL_OVERLAP,)),
        ("bn_relu_maxpool_backward", (_POOL,), (_POOL_OF_TWO,), (_POOL_OVERLAP,)),
        ("bn_act_backward", (_THREE, ("out",)), (_THREE, ()), (_ODD, ("out",))),
        ("bn_backward_apply", (_THREE,), (_THREE, ("constant",)), (_ODD,)),
    )
    for shape, *rest in calls
)

# channels whose mean is far from zero in deviations
OFFSET_CASES = tuple(
    dataclasses.replace(case, offset=30.0)
    for case in CASES
    if case.op in ("bn_finalize", "gram", "gram_products", "gram_backward_finish")
    and case.shape in (_THREE, _ONE)
    and case.with_ in ((), ("prologue",), ("prologue", "out"))
)


def layout_cases(layout: str) -> list[TrainingCase]:
    """The first case of each op that takes a map, in another memory layout."""
    first = {case.op: case for case in reversed(CASES)}
    return [dataclasses.replace(first[op], layout=layout) for op in OUTPUTS if "finalize" not in op]


def with_dtype(dtype: torch.dtype) -> list[TrainingCase]:
    """The first two cases of each op, in another dtype."""
    return [dataclasses.replace(case, dtype=dtype) for op in OUTPUTS for case in [c for c in CASES if c.op == op][:2]]
