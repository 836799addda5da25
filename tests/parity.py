"""The one line that a parity test is: `assert_parity(ours, reference, case, backend=...)`.

Runs both functions on the case's inputs in its dtype, the reference once more in float64, and holds our error against
float64 to twice the reference's plus a rounding floor (`fused_resnet.parity.compare`).  A failure prints the
output's name, the coordinate of its worst element and both errors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fused_resnet.ops import use_backend
from fused_resnet.parity import Row, compare


class Case(Protocol):
    """What `assert_parity` needs of a case: a frozen dataclass, one readable line of description each."""

    id: str
    outputs: tuple[str, ...]

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Fresh keyword arguments for the functions compared, the same at every call."""


def doubled(value: Any) -> Any:
    """`value` with every floating-point tensor in float64, its values unchanged."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _named(result: Tensor | tuple[Tensor, ...], names: tuple[str, ...]) -> dict[str, Tensor]:
    tensors = (result,) if isinstance(result, Tensor) else result
    return dict(zip(names, tensors, strict=True))


def assert_parity(
    ours: Callable, reference: Callable, case: Case, backend: str | None = None, device: torch.device | str = "cpu"
) -> None:
    """Raise AssertionError unless each output of `ours` is as close to float64 as allowed by that of `reference`."""
    with torch.no_grad():
        with use_backend(backend) if backend else contextlib.nullcontext():
            output = _named(ours(**case.inputs(device)), case.outputs)
        baseline = _named(reference(**case.inputs(device)), case.outputs)
        exact = {name: doubled(value) for name, value in case.inputs(device).items()}
        gold = _named(reference(**exact), case.outputs)
    for name in case.outputs:
        row = compare(name, output[name], baseline[name], gold[name])
        assert row.passed, describe(case, backend, row, output[name], gold[name])


def describe(case: Case, backend: str | None, row: Row, output: Tensor, gold: Tensor) -> str:
    """What failed, where and by how much."""
    at = row.worst
    return (
        f"{case.id} through {backend or 'auto'}: {row.name} is further from float64 than allowed\n"
        f"  worst at {list(at)}: got {output[at].item():.9g}, expected {gold[at].item():.9g}\n"
        f"  RMS error {row.rms_ours:.3g}, baseline {row.rms_baseline:.3g}, allowed {row.rms_allowed:.3g}\n"
        f"  max error {row.max_ours:.3g}, baseline {row.max_baseline:.3g}, allowed {row.max_allowed:.3g}"
        "  (relative to the output's RMS)"
    )
