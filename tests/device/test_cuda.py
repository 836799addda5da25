"""The CUDA kernels on a device, by name: the cases of `kernels/passes/` and of the CUDA backend once more."""

from __future__ import annotations

import pytest
import torch

import fused_resnet
from fused_resnet import ops
from fused_resnet.backends.cuda import availability
from fused_resnet.ops import training
from fused_resnet.shapes import ConvShape
from tests.backends.cuda.test_backend import CONVOLUTIONS, assert_equals_the_reference, op_of
from tests.kernels.passes.test_passes import ALL, REPEATED
from tests.support.cases import ConvCase
from tests.support.training_cases import TrainingCase

pytestmark = pytest.mark.gpu
GEOMETRY = ("stride", "padding", "dilation", "groups", "weight_size")  # what a backend's choice may depend on
# Enough pixels for blocks of whole tiles on 132 multiprocessors: smaller cases go to conv3x3_halo_split there.
MANY_PIXELS = [
    ConvCase(ConvShape(128, channels, 14, 14, channels, 3, 3, (1, 1), (1, 1)), residual="same", dtype=torch.bfloat16)
    for channels in (128, 256, 512)
]
# Clusters of 2, 4 and 8 blocks that share the filters, as many as the device holds.
MANY_FILTERS = [
    TrainingCase("gram_products", ConvShape(32, c, 14, 14, 4 * c, 1, 1), ("prologue", "out"), torch.bfloat16)
    for c in (128, 256, 512)
]


def skip_unless_taken(case) -> None:
    """Skips, with the backend's own reason, what this machine or this extension cannot run."""
    reason = availability.unavailable_reason()
    if reason is None:
        inputs = case.inputs("cuda")
        first, weight = next(iter(inputs.values())), inputs.get("weight")
        geometry = {name: inputs[name] for name in GEOMETRY if name in inputs}
        reason = availability.unsupported_reason(op_of(case), first, weight, **geometry)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize(
    "case", [*ALL, *CONVOLUTIONS, *MANY_PIXELS, *MANY_FILTERS], ids=lambda case: f"{op_of(case)}-{case.id}"
)
def test_equals_the_reference(case):
    skip_unless_taken(case)
    module = training if isinstance(case, TrainingCase) else ops
    assert_equals_the_reference(module, case, backend="cuda", device="cuda")


@pytest.mark.parametrize("case", [*REPEATED, *MANY_FILTERS], ids=lambda case: case.id)
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
