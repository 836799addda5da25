"""The stem of a network on the backend `cuda`, its kernels emulated, beside the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fused_resnet.backends import cuda, reference
from fused_resnet.blocks import stem
from fused_resnet.ops import asked, dispatch
from tests.support.emulated import needs_compiler
from tests.support.emulated_extension import EmulatedExtension, install

pytestmark = needs_compiler


@pytest.fixture
def run(monkeypatch):
    """run(backend, modules, x): the stem's output by this backend, asked for by name, and the ops that ran."""
    guards = install(monkeypatch, EmulatedExtension(seed=1, blocks=3))
    monkeypatch.setattr(cuda, "unsupported_reason", lambda *_, **__: None)
    monkeypatch.setattr(stem, "trains_by_name", lambda: True)
    monkeypatch.setattr(asked, "_process", "cuda")

    def by_name(backend, modules: tuple[nn.Module, ...], x: Tensor) -> tuple[Tensor, list[str]]:
        monkeypatch.setattr(dispatch, "_available", lambda _: backend)
        with dispatch.recording() as rows:
            y = stem.stem_forward(*modules, x)
            if y.requires_grad:
                y.float().square().sum().backward()
        return y.detach(), [row.op for row in rows if row.op]

    yield by_name
    guards.check()


def modules_of(training: bool) -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False).bfloat16().requires_grad_(training)
    norm = nn.BatchNorm2d(64).train(training).requires_grad_(training)
    norm.running_mean.normal_()
    return conv, norm, nn.ReLU(), nn.MaxPool2d(3, 2, 1)


@pytest.mark.parametrize("training", [False, True])
def test_a_networks_stem(run, training):
    x = torch.randn(2, 3, 45, 67).bfloat16()
    (ours, launched), (expected, _) = (run(one, modules_of(training), x) for one in (cuda, reference))
    torch.testing.assert_close(ours, expected, rtol=2**-7, atol=2**-7)
    norm = ["bn_finalize", "bn_relu_maxpool", "bn_relu_maxpool_backward"]
    assert launched == (["conv_stats", *norm, "conv_wgrad"] if training else ["conv_bn_relu_maxpool"])


def test_the_gradients_of_a_networks_stem(run):
    x = torch.randn(2, 3, 45, 67).bfloat16()
    gradients = []
    for backend in (cuda, reference):
        modules = modules_of(training=True)
        run(backend, modules, x)
        gradients.append((modules[0].weight.grad.float(), modules[1].weight.grad, modules[1].bias.grad))
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).norm() <= 2e-2 * expected.norm()
