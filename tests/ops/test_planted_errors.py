"""The parity rule notices what is wrong by little: every op, given arguments that are off, must fail beside its judge.

A fault is an argument changed: a thousandth in one channel, a row of pixels or a tap dropped, an epsilon or a count
that is not the one given.  The judge gets the arguments as they are.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from fused_resnet.backends import onednn, reference
from fused_resnet.backends import triton as triton_backend
from fused_resnet.ops import training
from tests.support.cases import CONV_CASES
from tests.support.parity import judged
from tests.support.training_arguments import comparable
from tests.support.training_cases import CASES
from tests.support.training_composed import judge

CHANNEL = 1  # of which a thousandth is missing
# Arguments that only their sign is read of.
MASKS = {
    "conv_dgrad": ("below_scale", "below_shift"),
    "gram_products": ("out",),
    "bn_relu_maxpool_backward": ("scale", "shift"),
    "bn_act_backward": ("out",),
}


def _off(tensor: Tensor, dim: int) -> Tensor:
    """A thousandth too large in one channel; a constant is no longer zero either."""
    off = tensor.clone()
    off.select(dim, CHANNEL).mul_(1.001).add_(0 if tensor.dim() > 1 else 1e-3)
    return off


def _negated(tensor: Tensor, dim: int) -> Tensor:
    off = tensor.clone()
    off.select(dim, CHANNEL).neg_().sub_(1)
    return off


def _row_dropped(x: Tensor) -> Tensor:
    off = x.clone()
    off[-1, :, -1, :] = 0
    return off


def _tap_dropped(weight: Tensor) -> Tensor:
    off = weight.clone()
    off[:, :, -1, -1] = 0
    return off


def faults_of(op: str, arguments: dict) -> dict[str, dict]:
    """By name: the arguments with one of them off."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            is_map = value.dim() == 4 and name != "weight"
            masks = name in MASKS.get(op, ())
            change, what = (_negated, "another sign") if masks else (_off, "a thousandth")
            found[f"{name}: {what} in one channel"] = {name: change(value, 1 if is_map else 0)}
            if is_map:
                found[f"{name}: a row of pixels dropped"] = {name: _row_dropped(value)}
            elif value.dim() == 4 and value.shape[2] > 1:
                found[f"{name}: a tap dropped"] = {name: _tap_dropped(value)}
        elif name == "eps":
            found["eps: ten times as large"] = {name: 10 * value}
        elif name == "count":
            found["count: one fewer, as for an unbiased variance"] = {name: value - 1}
        elif name == "act":
            found["act: none"] = {name: "identity" if value == "relu" else "relu"}
    return {name: {**arguments, **changed} for name, changed in found.items()}


def _first(op: str):
    return next(case for case in CASES if case.op == op)


@functools.cache
def _case(op: str):
    return CONV_CASES[1] if op == "conv_scale_shift_act" else _first(op)


# Arguments that change nothing but how good the sums need be.
FREE = {("gram", "weight")}


def _planted() -> list[tuple[str, str]]:
    ops = ("conv_scale_shift_act", *training.OPS)
    return [
        (op, fault)
        for op in ops
        for fault in faults_of(op, _case(op).inputs())
        if (op, fault.partition(":")[0]) not in FREE
    ]


PLANTED = _planted()


def shares(backend, op: str, arguments: dict) -> list[float]:
    case = _case(op)
    with torch.no_grad():
        output = comparable(op, getattr(backend, op))(**arguments)
    return [
        row.share for row, _, _ in judged(output, judge(op) if op in training.OPS else getattr(reference, op), case)
    ]


def test_there_are_a_hundred():
    assert len(PLANTED) + len(_ONEDNN) + len(_TRITON) >= 100


@pytest.mark.parametrize(("op", "fault"), PLANTED, ids=[f"{op}-{fault}" for op, fault in PLANTED])
def test_a_planted_error_is_noticed(op, fault):
    arguments = _case(op).inputs()
    assert max(shares(reference, op, faults_of(op, arguments)[fault])) > 1


_ONEDNN = [fault for op, fault in PLANTED if op == "conv_scale_shift_act"]


@pytest.mark.parametrize("fault", _ONEDNN)
def test_a_planted_error_is_noticed_in_onednn(fault):
    op = "conv_scale_shift_act"
    arguments = _case(op).inputs()
    assert max(shares(onednn, op, arguments)) <= 1 < max(shares(onednn, op, faults_of(op, arguments)[fault]))


_TRITON = [(op, fault) for op, fault in PLANTED if op in ("conv_stats", "conv_dgrad", "gram_products", "bn_add_act")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter, which is off where there is a GPU")
@pytest.mark.parametrize(("op", "fault"), _TRITON, ids=[f"{op}-{fault}" for op, fault in _TRITON])
def test_a_planted_error_is_noticed_in_triton(op, fault):
    assert max(shares(triton_backend, op, faults_of(op, _case(op).inputs())[fault])) > 1
