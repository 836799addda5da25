"""The one line that a parity test is: `assert_parity(ours, reference, case, backend=...)`.

Runs ours on the case's inputs, the reference in float64, and the reference in the case's dtype with its roundings
disturbed, and holds our error to what rounding explains (`fused_resnet.parity.compare`).  A failure prints the output's
name, the coordinate of its worst element and both errors.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fused_resnet.ops import use_backend
from fused_resnet.parity import Row, compare, sampled

MODEL_RUNS = 6


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


def judged(
    output: Tensor | tuple[Tensor, ...], reference: Callable, case: Case, device: torch.device | str = "cpu"
) -> list[tuple[Row, Tensor, Tensor]]:
    """Each of the case's outputs in `output`: its verdict, itself, and the same in float64.

    The reference runs on `device`, in float64 and in the case's dtype.
    """
    output = _named(output, case.outputs)
    with torch.no_grad():
        inputs = case.inputs(device)  # drawn before the roundings are disturbed
        gold = _named(reference(**{name: doubled(value) for name, value in inputs.items()}), case.outputs)
        runs = [_named(run, case.outputs) for run in sampled(lambda: reference(**inputs))]
    return [
        (compare(name, output[name], gold[name], [run[name] for run in runs]), output[name], gold[name])
        for name in case.outputs
    ]


def assert_parity(
    ours: Callable, reference: Callable, case: Case, backend: str | None = None, device: torch.device | str = "cpu"
) -> None:
    """Raise AssertionError unless each output of `ours` is as close to float64 as rounding explains."""
    with torch.no_grad(), use_backend(backend) if backend else contextlib.nullcontext():
        output = ours(**case.inputs(device))
    for row, one, gold in judged(output, reference, case, device):
        assert row.passed, describe(case, backend, row, one, gold)


def model_row(output: Tensor, theirs: nn.Module, x: Tensor, amp: torch.dtype | None = None) -> Row:
    """The verdict on a model's `output`; its judge is `theirs` on the same x, under autocast where `amp` says so."""
    with torch.no_grad():
        gold = copy.deepcopy(theirs).double()(x.double())
        with torch.autocast(x.device.type, amp, enabled=amp is not None, cache_enabled=False):
            return compare("logits", output, gold, sampled(lambda: theirs(x), MODEL_RUNS))


def assert_as_near(
    ours: dict[str, Tensor], theirs: Callable[[], dict[str, Tensor]], exact: dict[str, Tensor], flips: bool = False
) -> None:
    """Raise AssertionError unless each tensor of a training step is as close to float64 as rounding explains.

    `theirs` makes the same step in torch's modules, from the same state at every call.  With `flips`, in half
    precision, the gradient of the input is left out: ReLUs whose input is near zero flip, and each moves some of its
    elements by their whole size; in the parameters' gradients these are a few of many terms.
    """
    runs = list(sampled(theirs))
    for name, gold in exact.items():
        if not gold.is_floating_point():
            assert torch.equal(ours[name], gold), name
        elif not (flips and name == "x"):
            row = compare(name, ours[name], gold, [run[name] for run in runs])
            assert row.passed, row


def describe(case: Case, backend: str | None, row: Row, output: Tensor, gold: Tensor) -> str:
    """What failed, where and by how much."""
    at = row.worst
    if row.along:
        where = f"worst is channel {at[0]}, as a whole"
    else:
        where = f"worst at {list(at)}: got {output[at].item():.9g}, expected {gold[at].item():.9g}"
    return (
        f"{case.id} through {backend or 'auto'}: {row.name} is further from float64 than rounding explains\n"
        f"  {where}; {row.share:.3g} times what is allowed\n"
        f"  RMS error {row.rms_ours:.3g}, of rounding {row.rms_rounding:.3g}, max error {row.max_ours:.3g}"
        "  (relative to the output's RMS)"
    )
