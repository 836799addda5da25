"""The CUDA kernels on a device, by name: the cases of `test_cuda_kernels.py` and `test_cuda_backend.py` once more."""

from __future__ import annotations

import pytest
import torch

import fused_resnet
from fused_resnet import ops
from fused_resnet.backends.cuda import availability
from fused_resnet.ops import training

from .test_cuda_backend import CONVOLUTIONS, assert_equals_the_reference, op_of
from .test_cuda_kernels import ALL, REPEATED
from .training_cases import TrainingCase

pytestmark = pytest.mark.gpu


def skip_unless_taken(case) -> None:
    """Skips, with the backend's own reason, what this machine or this extension cannot run."""
    reason = availability.unavailable_reason()
    if reason is None:
        inputs = case.inputs("cuda")
        first, weight = next(iter(inputs.values())), inputs.get("weight")
        geometry = {name: inputs[name] for name in ("stride", "padding", "dilation", "groups") if "weight" in inputs}
        reason = availability.unsupported_reason(op_of(case), first, weight, **geometry)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("case", [*ALL, *CONVOLUTIONS], ids=lambda case: f"{op_of(case)}-{case.id}")
def test_equals_the_reference(case):
    skip_unless_taken(case)
    module = training if isinstance(case, TrainingCase) else ops
    assert_equals_the_reference(module, case, backend="cuda", device="cuda")


@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.id)
def test_a_call_repeats_bit_by_bit(case):
    skip_unless_taken(case)
    with fused_resnet.use_backend("cuda"), torch.no_grad():
        first, again = (getattr(training, case.op)(**case.inputs("cuda")) for _ in range(2))
    pairs = zip(first, again, strict=True) if isinstance(first, tuple) else [(first, again)]
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_mean_of_an_image():
    if availability.unavailable_reason() is not None:
        pytest.skip(availability.unavailable_reason())
    x = torch.randn(3, 264, 7, 7, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    with fused_resnet.use_backend("cuda"):
        y = ops.global_avg_pool(x)
    torch.testing.assert_close(y.double(), x.double().mean((2, 3), keepdim=True), rtol=2**-8, atol=1e-7)
