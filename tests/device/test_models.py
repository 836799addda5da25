"""Whole models on a GPU: CUDA graphs, steps that repeat bitwise, maps past 2^31 elements, errors against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

import fused_resnet
from benchmarks.subjects import candidates, steps
from fused_resnet import ops, parity, use_backend
from fused_resnet.backends import reference
from fused_resnet.ops import dispatch

from .test_ops import BF16, DEVICE, DTYPES, exact_float32, require

pytestmark = pytest.mark.gpu
__all__ = ["exact_float32"]  # a fixture, for every test here too


def _model_and_images(size: int = 64, batch: int = 4, dtype: torch.dtype = BF16):
    model = fused_resnet.resnet50().eval()
    images = torch.randn(2, batch, 3, size, size)
    parity.randomize(model, images[0])
    model = model.to(DEVICE, dtype, memory_format=torch.channels_last)
    return model, [one.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last) for one in images]


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("frozen", [False, True], ids=["live", "frozen"])
def test_inference_in_a_cuda_graph(frozen, backend):
    model, (first, second) = _model_and_images()
    subject = fused_resnet.freeze(model) if frozen else model
    static = first.clone()
    with torch.inference_mode(), use_backend(backend):
        replay = candidates.captured(lambda: subject(static))
        assert torch.equal(replay(), subject(first))
        static.copy_(second)
        assert torch.equal(replay(), subject(second)) and not torch.equal(subject(first), subject(second))


def _step() -> steps.Step:
    """Ours through Triton by name, ResNet-18, eight small images, autocast to bfloat16."""
    network = candidates.Network("resnet18")
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(8, 3, 64, 64, generator=draw), torch.randint(1000, (8,), generator=draw)
    return steps.prepare(steps.Recipe(True, BF16), network, images, labels, DEVICE, "triton")


def _after_a_step(step: steps.Step) -> list[Tensor]:
    """Loss, gradients and state after one step from the initial weights."""
    step.restore()
    step.optimizer.state.clear()
    loss = step()
    gradients = [parameter.grad for parameter in step.model.parameters()]
    return [tensor.detach().clone() for tensor in (loss, *gradients, *step.model.state_dict().values())]


def test_a_training_step_in_a_cuda_graph():
    require("triton")
    step = _step()
    _after_a_step(step)
    expected = step.gradients()
    step.restore()
    step.capture()
    step.restore()
    step()
    # The classifier is cuBLAS's, which need not take the same kernel in a graph: bfloat16's rounding may show.
    for name, gradient in step.gradients().items():
        difference = (gradient - expected[name]).norm() / expected[name].norm()
        assert difference <= torch.finfo(BF16).eps, f"{name} differs by {difference:.2g}"


# ---- repeats ----


def test_a_hundred_steps_give_the_same_bits():
    require("triton")
    step = _step()
    first = _after_a_step(step)
    for index in range(1, 100):
        same = [torch.equal(one, other) for one, other in zip(first, _after_a_step(step), strict=True)]
        assert all(same), f"step {index + 1} differs in tensor {same.index(False)}"


# ---- past 2^31 elements ----


def _require_memory(gib: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory, there are {free / 2**30:.1f}")


def test_a_map_of_more_than_two_to_the_31_elements():
    require("triton")
    _require_memory(16)
    n, c, extent = 168, 64, 448
    assert n * c * extent * extent > 2**31
    x = torch.empty(n, c, extent, extent, dtype=BF16, device=DEVICE, memory_format=torch.channels_last).normal_()
    weight = (torch.randn(c, c, 1, 1, device=DEVICE) / c**0.5).to(BF16)
    vectors = [torch.rand(c, device=DEVICE) + 0.5 for _ in range(4)]
    with torch.no_grad(), use_backend("triton"):
        y = ops.conv_scale_shift_act(x, weight, *vectors, 1e-5)
        exact = [tensor.double() for tensor in (weight, *vectors)]
        for image in (0, n // 2, n - 1):
            part = x[image : image + 1]
            gold = reference.conv_scale_shift_act(part.double(), *exact, 1e-5)
            disturbed = parity.sampled(partial(reference.conv_scale_shift_act, part, weight, *vectors, 1e-5), 4)
            row = parity.compare(f"image {image}", y[image : image + 1], gold, disturbed)
            assert row.passed, row


# ---- whole models ----


@pytest.mark.parametrize("frozen", [False, True], ids=["live", "frozen"])
@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20"])
def test_every_stage_of_a_model_against_float64(name, dtype, backend, frozen):
    require("triton")
    size = 32 if name.startswith("cifar") else 97
    report = parity.check_model(name, "cuda", dtype, backend, batch=2, size=size, frozen=frozen)
    assert report.passed, str(report)


@pytest.mark.parametrize("amp", [BF16, torch.float16, None], ids=["bfloat16", "float16", "float32"])
def test_the_gradients_of_a_model_against_float64(amp):
    require("triton")
    network = candidates.Network("resnet18")
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(16, 3, 96, 96, generator=draw), torch.randint(1000, (16,), generator=draw)
    truth = steps.gold(network, images, labels, DEVICE)
    errors = {}
    for ours in (False, True):
        step = steps.prepare(steps.Recipe(ours, amp), network, images, labels, DEVICE, "triton")
        errors[ours] = steps.parity(step, truth)["gradient_rms"]
    assert errors[True] <= 2 * errors[False] + 1e-6, errors


def test_training_by_name_takes_the_fused_path():
    """Without this the tests of steps could pass on torch's own modules."""
    require("triton")
    step = _step()
    with dispatch.recording() as decisions:
        step()
    backends = {decision.backend for decision in decisions if decision.op}
    assert backends == {"triton"}, backends
    assert "conv_wgrad" in {decision.op for decision in decisions}
