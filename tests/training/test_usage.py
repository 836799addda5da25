"""Training as people train: frozen parts, autocast, checkpointing, odd norms and batches, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fused_resnet
from fused_resnet import Bottleneck, use_backend
from fused_resnet.ops import asked, dispatch
from tests.models.test_blocks import randomise
from tests.support.parity import assert_as_near
from tests.training.test_step import TRAINED, amp_step, fresh, step


def test_frozen_parts_cost_and_get_nothing():
    block, x = fresh(TRAINED[3])
    block.conv1.requires_grad_(False)
    block.bn1.eval().requires_grad_(False)
    twin = copy.deepcopy(block)
    ours, theirs = step(block, x), step(twin, x, backend="auto")
    assert "conv1.weight" not in ours and ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9)
    with use_backend("reference"):
        assert not block.requires_grad_(False)(x).requires_grad


def test_autocast_keeps_master_weights_gradients_in_float32():
    block, x = fresh(TRAINED[5], torch.float32)
    ours, theirs = amp_step(block, x), amp_step(block, x, backend="auto")
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
    exact = step(copy.deepcopy(block).double(), x.double(), backend="auto")
    assert_as_near(ours, lambda: amp_step(block, x, backend="auto"), exact, flips=True)


def test_a_gradient_scaler_trains_float16_and_skips_what_overflowed():
    """Against eager from the same weights: the scaled step, and the step that is skipped with the scale it leaves."""
    block, x = fresh(TRAINED[5], torch.float32)
    results = []
    for backend, trained in (("reference", block), ("auto", copy.deepcopy(block))):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        start, scales = copy.deepcopy(trained.state_dict()), []
        for factor in (1.0, 1e30):
            optimizer.zero_grad()
            with use_backend(backend), torch.autocast("cpu", torch.float16):
                loss = trained(x).float().square().mean() * factor
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        moved = {name: p.detach() - start[name] for name, p in trained.named_parameters()}
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trained.parameters())
        results.append((scales, moved))
    (ours, moved), (theirs, expected) = results
    assert ours == theirs == [2.0**8, 2.0**7]
    for name, step_of_eager in expected.items():
        assert (moved[name] - step_of_eager).norm() <= 0.05 * step_of_eager.norm(), name


def test_checkpointing_accumulating_and_retaining():
    block, x = fresh(TRAINED[3])
    plain = step(copy.deepcopy(block), x)
    with use_backend("reference"):
        leaf = x.clone().requires_grad_()
        checkpointed = copy.deepcopy(block)
        checkpoint(checkpointed, leaf, use_reentrant=False).sum().backward()
        torch.testing.assert_close(leaf.grad, plain["x"])
        leaf, twice = x.clone().requires_grad_(), copy.deepcopy(block)
        loss = twice(leaf).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        torch.testing.assert_close(leaf.grad, 2 * plain["x"])
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(block(leaf).square().sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def test_one_value_a_channel_is_refused_in_torchs_words():
    block = Bottleneck(16, 4).train()
    x = torch.randn(1, 16, 1, 1)
    before = copy.deepcopy(block.state_dict())
    for backend in ("auto", "reference"):
        with (
            pytest.raises(ValueError, match="Expected more than 1 value per channel when training"),
            use_backend(backend),
        ):
            block(x)
    after = block.state_dict()
    assert torch.equal(after["bn2.running_mean"], before["bn2.running_mean"])


def test_auto_and_what_the_functions_do_not_know_train_through_torchs_modules():
    block, x = fresh(TRAINED[3])
    with dispatch.recording() as decisions:
        block(x)
    assert decisions[0].unfused_reason == "bn1 is in training mode"
    for change, reason in (
        (lambda b: b.conv1.register_forward_hook(lambda *_: None), "conv1 has a hook"),
        (lambda b: setattr(b, "bn2", nn.GroupNorm(2, 4).double()), "bn2 is GroupNorm, not BatchNorm2d"),
    ):
        changed = copy.deepcopy(block)
        change(changed)
        with use_backend("reference"):
            assert changed.untrainable_reason(x) == reason
    projected, x = fresh(TRAINED[4])
    projected.downsample[0] = nn.Conv2d(8, 16, 3, padding=1, bias=False).double()
    with use_backend("reference"):
        assert projected.untrainable_reason(x).startswith("downsample.0 is not a plain 1x1 convolution")


def test_an_empty_batch_trains_as_torchs():
    block, x = fresh(TRAINED[3])
    before = copy.deepcopy(block.state_dict())
    found = step(block, x[:0])
    assert found["y"].shape[0] == 0 and found["conv1.weight"].count_nonzero() == 0
    assert torch.equal(block.bn1.running_mean, before["bn1.running_mean"])


def test_norms_without_affine_or_statistics():
    block, x = fresh(TRAINED[3])
    block.bn1 = nn.BatchNorm2d(4, affine=False).double()
    block.bn2 = nn.BatchNorm2d(4, track_running_stats=False).double()
    for training in (True, False):
        twin = copy.deepcopy(block.train(training))
        ours, theirs = step(copy.deepcopy(block), x), step(twin, x, backend="auto")
        for name, expected in theirs.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9)


def test_wide_means_train_better_than_eager():
    """Mean over deviation of 60 in every channel: centred sums keep the weight gradients, eager's float32 does not."""
    torch.manual_seed(4)
    block = randomise(Bottleneck(16, 4)).train()
    with torch.no_grad():
        block.bn2.bias.fill_(60.0)
    x, grad = torch.randn(4, 16, 14, 14), torch.randn(4, 16, 14, 14)
    exact = step(copy.deepcopy(block).double(), x.double(), grad.double(), "auto")["conv3.weight"]
    eager = step(copy.deepcopy(block), x, grad, "auto")["conv3.weight"]
    ours = step(copy.deepcopy(block), x, grad)["conv3.weight"]
    assert (ours - exact).norm() < (eager - exact).norm()


def test_a_backend_that_is_not_there_is_an_error_in_training_too(monkeypatch):
    block, x = fresh(TRAINED[3])
    for name, error in (("nonsense", ValueError), ("triton", fused_resnet.BackendError)):
        monkeypatch.setattr(asked, "_process", name)
        monkeypatch.setattr(dispatch, "_available", lambda name: None)
        monkeypatch.setattr(dispatch, "unavailable_reason", lambda name: "nobody knows")
        with pytest.raises(error, match="unknown backend 'nonsense'|not available here: nobody knows"):
            block(x)
