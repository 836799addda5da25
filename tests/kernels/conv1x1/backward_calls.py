"""Calls of the emulated conv1x1_backward, and what float64 says of them: for its tests and its planted faults."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tests.kernels.conv1x1.forward_calls import ELEMENT_TYPES, UNIT_ROUNDOFF, assert_guard_intact, guarded
from tests.kernels.conv1x1.gradient_calls import Case, Inputs, check_products, dgrad, draw
from tests.support.emulated import Library


def run(library: Library, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """dx, and the partials (blocks, K, C); of `case.with_` "rectified" masks dx by x."""
    dx, dx_buffer = guarded(case.size, case.dtype)
    partials, partials_buffer = guarded((case.blocks, case.k, case.c), torch.float32)
    library.conv1x1_backward(inputs.g, inputs.z, inputs.a, inputs.b, inputs.c, inputs.weight, inputs.x,
        case.has("rectified"), inputs.skip, inputs.skip_out, dx, partials, case.blocks, ELEMENT_TYPES[case.dtype],
        *case.size, case.k, case.seed, case.workers,
    )  # fmt: skip
    assert_guard_intact(dx_buffer)
    assert_guard_intact(partials_buffer)
    return dx, partials


def exact_dx(case: Case, inputs: Inputs) -> Tensor:
    """dx in float64."""
    return dgrad(case, dataclasses.replace(inputs, below_out=inputs.x if case.has("rectified") else None))


def check(library: Library, case: Case) -> None:
    inputs = draw(case)
    dx, partials = run(library, case, inputs)
    torch.testing.assert_close(dx.double(), exact_dx(case, inputs), rtol=UNIT_ROUNDOFF[case.dtype], atol=2e-5)
    check_products(case, inputs, partials)


def check_infinite_constant(library: Library) -> None:
    """An infinite c makes infinities, and nothing where there is no pixel: not the NaN of its product with no x."""
    case = Case(1, 3, 3, 8, 16, blocks=1)
    inputs = draw(case)
    inputs.c[4] = torch.inf
    inputs.x.abs_()
    products = run(library, case, inputs)[1][0]
    assert products[4].isposinf().all() and products[5:].isfinite().all()
