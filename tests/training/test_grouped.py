"""Grouped and dilated convolutions in training: ATen's own, between this project's norms."""

import copy

import pytest
import torch
from torch import nn

from fused_resnet import BasicBlock, Bottleneck, OptionAShortcut, models, use_backend
from fused_resnet.blocks.stages import stages_forward
from fused_resnet.ops import dispatch
from tests.models.test_blocks import BlockCase, projection, randomise
from tests.support.parity import assert_as_near
from tests.training.test_step import F64, amp_step, fresh, functions, fused_path, step

RESNEXT = (("groups", 4), ("base_width", 32))
CASES = [
    BlockCase("resnext identity", Bottleneck, 32, 8, options=RESNEXT),
    BlockCase("resnext projection stride 2", Bottleneck, 16, 8, 2, "projection", options=RESNEXT),
    BlockCase("resnext option A stride 2", Bottleneck, 16, 8, 2, "option_a", options=RESNEXT),
    BlockCase("dilated", Bottleneck, 16, 4, options=(("dilation", 2),)),
    BlockCase("dilated projection", Bottleneck, 8, 4, 1, "projection", options=(("dilation", 4),)),
    BlockCase("grouped and dilated", Bottleneck, 32, 8, options=(*RESNEXT, ("dilation", 2))),
]


def same(ours, theirs, rtol=1e-9):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def equals_torch(block, x):
    """Outputs, gradients, statistics of one step through the fused Functions against torch's modules."""
    assert fused_path(copy.deepcopy(block), x.clone().requires_grad_()) is None
    twin = copy.deepcopy(block)
    grad = torch.randn_like(copy.deepcopy(block)(x).detach())
    same(step(block, x, grad), step(twin, x, grad, "auto"))
    same(dict(block.state_dict()), dict(twin.state_dict()), rtol=1e-12)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_equal_torchs_in_float64(case, training):
    equals_torch(*fresh(case, training=training))


def rebuilt(block, **convolutions):
    for name, convolution in convolutions.items():
        setattr(block, name, convolution)
    return randomise(block).double().train()


def conv(channels, filters, kernel, groups=1, dilation=1, stride=1):
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias=False)


def unusual():
    """Blocks whose convolutions somebody has replaced: grouped and dilated ones in every place."""
    return {
        "basic": rebuilt(BasicBlock(8, 8), conv1=conv(8, 8, 3, groups=2), conv2=conv(8, 8, 3, dilation=2)),
        "basic option A": rebuilt(
            BasicBlock(8, 16, 2, OptionAShortcut(8, 16, 2)), conv1=conv(8, 16, 3, groups=8, stride=2)
        ),
        "bottleneck": rebuilt(Bottleneck(16, 4), conv1=conv(16, 4, 1, groups=2), conv3=conv(4, 16, 1, groups=4)),
        "bottleneck projection": rebuilt(Bottleneck(8, 4, 1, projection(8, 16, 1)), conv1=conv(8, 4, 1, groups=4)),
        "a 1x1 has nothing to dilate": rebuilt(Bottleneck(16, 4), conv1=conv(16, 4, 1, dilation=3)),
    }


@pytest.mark.parametrize("name", unusual())
def test_convolutions_in_unusual_places(name):
    block = unusual()[name]
    equals_torch(block, torch.randn(2, block.conv1.in_channels, 9, 11, dtype=F64))


@pytest.mark.parametrize("frozen", ["conv1.weight", "conv2.weight", "conv3.weight"])
def test_frozen_filters(frozen):
    block, x = fresh(CASES[1])
    block.get_parameter(frozen).requires_grad_(False)
    equals_torch(block, x)


def test_a_chain_hands_its_gradient_down_through_them():
    """Grouped first convolutions above a bottleneck and above a basic block, which mask what they hand down."""
    blocks = [
        rebuilt(BasicBlock(8, 16, 1, projection(8, 16, 1))),
        rebuilt(BasicBlock(16, 16), conv1=conv(16, 16, 3, groups=2)),
        rebuilt(Bottleneck(16, 4, groups=2, base_width=64)),
        rebuilt(Bottleneck(16, 4), conv1=conv(16, 4, 1, groups=2)),
    ]
    stage = nn.Sequential(*blocks)
    twin, x = copy.deepcopy(stage), torch.randn(2, 8, 5, 6, dtype=F64)
    grad = torch.randn(2, 16, 5, 6, dtype=F64)
    leaf = x.clone().requires_grad_()
    with use_backend("reference"):
        y = stages_forward([stage], leaf)
    assert functions(y) == 1
    y.backward(grad)
    theirs = step(twin, x, grad, "auto")
    same({"y": y.detach(), "x": leaf.grad, **{name: p.grad for name, p in stage.named_parameters()}}, theirs)


def test_nothing_that_can_be_made_again_is_kept():
    block, x = fresh(CASES[0])
    maps = []

    def pack(tensor):
        if tensor.dim() == 4 and tensor.shape[0] == len(x):
            maps.append(tuple(tensor.shape[1:]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), use_backend("reference"):
        block(x.requires_grad_())
    assert sorted(maps) == [(16, 9, 11)] * 2 + [(32, 9, 11)] * 2, "expected z1 and z2, the input and the output"


NETWORKS = {
    "dilated": {"replace_stride_with_dilation": [False, True, True]},
    "resnext": {"groups": 4, "width_per_group": 8},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_whole_network(name):
    torch.manual_seed(2)
    model = models.ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, **NETWORKS[name]).double().train()
    twin = copy.deepcopy(model)
    x, target = torch.randn(2, 3, 65, 49, dtype=F64), torch.tensor([1, 3])
    with dispatch.recording() as decisions, use_backend("reference"):
        loss = nn.functional.cross_entropy(model(x), target)
    assert all(d.unfused_reason is None for d in decisions if d.module is not None and d.module is not model.avgpool)
    loss.backward()
    nn.functional.cross_entropy(twin(x), target).backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=key: f"{n}: {m}")


WIDER = [
    BlockCase("resnext identity", Bottleneck, 64, 16, options=RESNEXT),
    BlockCase("dilated projection", Bottleneck, 32, 16, 1, "projection", options=(("dilation", 2),)),
]


@pytest.mark.parametrize("case", WIDER, ids=lambda case: case.id)
def test_autocast_is_as_good_as_eagers(case):
    block, _ = fresh(case, torch.float32)
    x = torch.randn(4, case.inplanes, 14, 14)
    grad = torch.randn_like(copy.deepcopy(block)(x).detach())
    exact = step(copy.deepcopy(block).double(), x.double(), grad.double(), "auto")
    ours = amp_step(block, x, grad.bfloat16())
    assert_as_near(ours, lambda: amp_step(block, x, grad.bfloat16(), "auto"), exact, flips=True)


def test_a_stem_without_pooling():
    model = models.cifar_resnet20().double().train()
    model.conv1 = nn.Conv2d(3, 16, 3, padding=2, dilation=2, bias=False).double()
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 10, 9, dtype=F64)
    with dispatch.recording() as decisions:
        ours = step(model, x)
    assert next(d for d in decisions if d.module is model.conv1).unfused_reason is None
    same(ours, step(twin, x, backend="auto"), rtol=1e-7)


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=lambda case: case.id)
def test_triton_trains_a_block(case):
    """Its kernels around ATen's convolution, through the interpreter where there is no GPU."""
    block, x = fresh(case, torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block, x = block.to(device), x.to(device)
    grad = torch.randn_like(copy.deepcopy(block)(x).detach())
    exact = step(copy.deepcopy(block).double(), x.double(), grad.double(), "auto")
    ours = step(copy.deepcopy(block), x, grad, "triton")
    assert_as_near(ours, lambda: step(copy.deepcopy(block), x, grad, "auto"), exact)
