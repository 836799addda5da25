"""Networks on the backend `cuda`, asked for by name, every kernel emulated: a step of training, and inference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fused_resnet
from fused_resnet.backends import cuda, reference
from fused_resnet.backends.cuda import availability
from fused_resnet.blocks import BasicBlock, Bottleneck
from fused_resnet.models.resnet import ResNet
from fused_resnet.ops import asked, dispatch, training
from tests.support.emulated import needs_compiler
from tests.support.emulated_extension import EmulatedExtension, install

pytestmark = needs_compiler


@pytest.fixture
def by_name(monkeypatch):
    """by_name(backend): it is the one asked for, with its own refusals but that of tensors that are on no GPU."""
    guards = install(monkeypatch, EmulatedExtension(seed=1, blocks=3))
    refuse = availability.unsupported_reason

    def unsupported_reason(op, x, **arguments) -> str | None:
        reason = refuse(op, x, **arguments)
        return None if reason and "need a CUDA tensor" in reason else reason

    def ask_for(backend) -> None:
        monkeypatch.setattr(asked, "_process", backend.__name__.rpartition(".")[2])
        monkeypatch.setattr(dispatch, "_available", lambda _: backend)

    monkeypatch.setattr(cuda, "unsupported_reason", unsupported_reason)
    yield ask_for
    guards.check()


def network(block: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """Half a ResNet-50 or 18: projected, strided and identity blocks, with norms drawn so that each matters."""
    torch.manual_seed(0)
    model = ResNet(block, [2, 1, 1, 1], num_classes=10)
    model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128 * block.expansion, 10)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.bias, std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model.to(torch.bfloat16).to(dtype, memory_format=torch.channels_last)


def images(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 40, 56).to(torch.bfloat16).to(dtype).contiguous(memory_format=torch.channels_last)


def step(block: type[nn.Module], dtype: torch.dtype) -> tuple[dict[str, Tensor], set[str]]:
    """The gradient of every parameter after one step and the running statistics, float64; and the ops that ran."""
    model = network(block, dtype).train()
    with dispatch.recording() as rows:
        model(images(dtype)).double().square().sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {name: buffer for name, buffer in model.named_buffers() if "running" in name}
    return {name: value.double() for name, value in found.items()}, {row.op for row in rows if row.op}


# The training ops that a network of these blocks has no use for.
UNUSED = {
    Bottleneck: {"bn_add_act", "bn_act_backward", "bn_backward_apply", "channel_stats"},
    BasicBlock: {"bn_backward_apply", "channel_stats", "conv1x1_backward"},
}
BLOCKS = pytest.mark.parametrize("block", UNUSED)


@BLOCKS
def test_a_step_of_training(block, by_name):
    """As far from float64 as the reference, and closer to it than that: the same ReLUs flip."""
    exact, _ = step(block, torch.float64)
    by_name(cuda)
    ours, ops = step(block, torch.bfloat16)
    by_name(reference)
    theirs, _ = step(block, torch.bfloat16)
    assert ops == set(training.OPS) - UNUSED[block]
    wrong = {}
    for name, truth in exact.items():
        pairs = (ours[name], truth), (theirs[name], truth), (ours[name], theirs[name])
        error, expected, apart = (((one - other).norm() / truth.norm()).item() for one, other in pairs)
        if error > 1.1 * expected or apart > 0.5 * expected:
            wrong[name] = error, expected, apart
    assert not wrong


@BLOCKS
@pytest.mark.parametrize("frozen", [False, True])
def test_inference(block, by_name, frozen):
    x, errors = images(torch.bfloat16), []
    with torch.no_grad():
        truth = network(block, torch.float64).eval()(x.double())
        for backend in (cuda, reference):
            by_name(backend)
            model = network(block, torch.bfloat16).eval()
            with dispatch.recording() as rows:
                y = (fused_resnet.freeze(model) if frozen else model)(x)
            errors.append(((y.double() - truth).norm() / truth.norm()).item())
            assert (frozen and block is Bottleneck) == ("bottleneck_inference" in {row.op for row in rows})
    assert errors[0] <= 1.25 * errors[1] < 0.01
