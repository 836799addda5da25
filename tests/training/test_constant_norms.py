"""Norms with constant statistics in training: torchvision's FrozenBatchNorm2d, and BatchNorm2d frozen by hand."""

import copy

import pytest
import torch
from torch import nn

from fused_resnet import freeze, models, use_backend
from fused_resnet.ops import dispatch
from tests.support.parity import assert_as_near
from tests.support.twins import ABSENT, FAMILIES, settle, torchvision
from tests.training.test_step import F64, TRAINED, amp_step, by_id, fresh, fused_path, step

needs_torchvision = pytest.mark.skipif(torchvision is None, reason=ABSENT)


def freeze_norms(module):
    """Every BatchNorm2d inside replaced by torchvision's frozen norm of the same numbers, as detection models do."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = torchvision.ops.FrozenBatchNorm2d(child.num_features, child.eps).to(child.weight)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            freeze_norms(child)
    return module


def same(ours, theirs, rtol=1e-9):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@needs_torchvision
@by_id
def test_gradients_through_frozen_norms_equal_torchvisions(case):
    block, x = fresh(case)
    freeze_norms(block)
    assert fused_path(block, x.clone().requires_grad_()) is None
    twin = copy.deepcopy(block)
    grad = torch.randn_like(twin(x).detach())
    ours = step(block, x, grad)
    assert not any("bn" in name for name in ours)
    same(ours, step(twin, x, grad, "auto"))
    for name, tensor in twin.state_dict().items():
        assert torch.equal(block.state_dict()[name], tensor), name


@needs_torchvision
def test_inference_is_fused_in_either_mode():
    block, x = fresh(TRAINED[5], torch.float32)
    freeze_norms(block)
    expected = block.double()(x.double())
    for training in (True, False):
        with torch.no_grad():
            assert block.float().train(training).unfused_reason(x) is None
            torch.testing.assert_close(block(x).double(), expected.detach(), rtol=1e-5, atol=1e-5)
    folded = freeze(block)(x)
    torch.testing.assert_close(folded.double(), expected.detach(), rtol=1e-5, atol=1e-5)


@needs_torchvision
@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_network_of_frozen_norms(name):
    torch.manual_seed(2)
    source = getattr(models, name)(num_classes=5)
    settle(source)
    model = getattr(models, name)(num_classes=5, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    model.load_state_dict(source.state_dict(), strict=False)
    model.double().train()
    twin = copy.deepcopy(model)
    x, target = torch.randn(2, 3, 33, 40, dtype=F64), torch.tensor([1, 3])
    with dispatch.recording() as decisions, use_backend("reference"):
        loss = nn.functional.cross_entropy(model(x), target)
    assert all(d.unfused_reason is None for d in decisions if d.module is not None and d.module is not model.avgpool)
    unneeded = {"gram", "gram_finalize", "bn_finalize", "channel_stats"} & {d.op for d in decisions}
    assert not unneeded, f"statistics were made of maps whose norms have constants: {unneeded}"
    loss.backward()
    nn.functional.cross_entropy(twin(x), target).backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@needs_torchvision
def test_autocast_keeps_the_maps_in_its_dtype():
    block, x = fresh(TRAINED[5], torch.float32)
    freeze_norms(block)

    def theirs():
        found = amp_step(block, x, backend="auto")
        # torchvision's norm promotes to its buffers' float32
        return found | {"y": found["y"].bfloat16()}

    ours = amp_step(block, x)
    assert ours["y"].dtype == torch.bfloat16 and ours["conv1.weight"].dtype == torch.float32
    exact = step(copy.deepcopy(block).double(), x.double(), backend="auto")
    assert_as_near(ours, theirs, exact, flips=True)


@needs_torchvision
def test_only_torchvisions_frozen_norm_is_known_by_its_name():
    block, x = fresh(TRAINED[3])
    block.bn2 = type("FrozenBatchNorm2d", (nn.Identity,), {})()
    assert block.unfused_reason(x) == "bn1 is in training mode"
    assert block.untrainable_reason(x) == "bn2 is FrozenBatchNorm2d, not BatchNorm2d"
    freeze_norms(block).bn2 = torchvision.ops.FrozenBatchNorm2d(4)
    assert block.untrainable_reason(x.float()).startswith("conv1 has a weight of torch.float64")
    assert block.float().untrainable_reason(x.float()) is None
    block.bn2.double()
    assert block.untrainable_reason(x.float()) == "bn2 has its weight in torch.float64, the input is torch.float32"


def all_frozen(block):
    block.eval().requires_grad_(False)


def norms_frozen(block):
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval().requires_grad_(False)


def half_of_a_norm(block):
    block.bn1.weight.requires_grad_(False)
    block.bn2.eval().bias.requires_grad_(False)


def below_frozen(block):
    for module in (block.conv1, block.bn1):
        module.requires_grad_(False)
    block.bn1.eval()


def only_the_last_norm(block):
    block.requires_grad_(False)
    [norm for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)][-1].requires_grad_(True)


def mixed_modes(block):
    block.bn1.eval()
    block.conv2.requires_grad_(False)


MIXTURES = (all_frozen, norms_frozen, half_of_a_norm, below_frozen, only_the_last_norm, mixed_modes)


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: mixture.__name__)
@pytest.mark.parametrize("case", [TRAINED[1], TRAINED[3], TRAINED[5]], ids=lambda case: case.id)
@pytest.mark.parametrize("needs_x", [True, False], ids=["x", "no x"])
def test_frozen_and_unfrozen_mixtures(case, mixture, needs_x):
    block, x = fresh(case)
    mixture(block)
    twin = copy.deepcopy(block)
    grad = torch.randn_like(twin(x).detach())
    twin.load_state_dict(block.state_dict())
    found = {}
    for name, module in (("reference", block), ("auto", twin)):
        leaf = x.clone().requires_grad_(needs_x)
        with use_backend(name):
            y = module(leaf)
        if y.requires_grad:
            y.backward(grad)
        gradients = {"x": leaf.grad, **{key: p.grad for key, p in module.named_parameters()}}
        found[name] = {"y": y.detach(), **{key: g for key, g in gradients.items() if g is not None}}
    assert (len(found["auto"]) > 1) == (needs_x or mixture is not all_frozen)
    same(found["reference"], found["auto"])
    for name, expected in twin.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], expected, rtol=1e-12, atol=1e-12)


def test_the_weight_of_a_norm_far_from_zero_trains_no_worse_than_eagers():
    """With constant statistics only this gradient cancels, and only here does a centre matter."""
    block, x = fresh(TRAINED[3], torch.float32, training=False)
    with torch.no_grad():
        block.bn2.bias.fill_(60.0)
        read = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()
        z = block.conv3(read).transpose(0, 1).flatten(1)
        block.bn3.running_mean.copy_(z.mean(1))
        block.bn3.running_var.copy_(z.var(1))
    grad = torch.randn(2, 16, 9, 11)
    exact = step(copy.deepcopy(block).double(), x.double(), grad.double(), "auto")
    ours = step(copy.deepcopy(block), x, grad)
    assert_as_near(ours, lambda: step(copy.deepcopy(block), x, grad, "auto"), exact)
