"""Blocks that cannot train as they are: torch's own words, before anything ran or changed."""

import copy

import pytest
import torch
from torch import nn

from fused_resnet import Bottleneck, OptionAShortcut, use_backend
from fused_resnet.ops import dispatch
from tests.training.test_step import F64, TRAINED, fresh, step


def wider(block):
    block.conv3, block.bn3 = nn.Conv2d(4, 32, 1, bias=False).double(), nn.BatchNorm2d(32).double()


def strided(block):
    block.conv2.stride = (2, 2)


def other_option_a(block):
    block.downsample = OptionAShortcut(16, 20)


def other_projection(block):
    block.downsample = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)).double()


def other_norm(block):
    block.bn2 = nn.BatchNorm2d(5).double()


def large_filter(block):
    block.conv2 = nn.Conv2d(4, 4, 20, bias=False).double()


def nothing(block):
    pass


# change to the block, change to its input
WRONG = {
    "residual of other channels": (wider, lambda x: x),
    "residual of another extent": (strided, lambda x: x),
    "option A to other channels": (other_option_a, lambda x: x),
    "projection to other channels": (other_projection, lambda x: x),
    "norm of other channels": (other_norm, lambda x: x),
    "filter larger than the map": (large_filter, lambda x: x),
    "input of other channels": (nothing, lambda x: x[:, :7]),
    "input of another dtype": (nothing, lambda x: x.float()),
    "input of three dimensions": (nothing, lambda x: x[0]),
    "input made in inference mode": (nothing, lambda x: made_in_inference_mode(x)),
}


def made_in_inference_mode(x):
    with torch.inference_mode():
        return x.clone(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", WRONG)
def test_torchs_own_complaint_before_anything_changed(name):
    change, of_input = WRONG[name]
    block, x = fresh(TRAINED[3])
    change(block)
    x = of_input(x)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        copy.deepcopy(block)(x)
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(expected.type) as caught, use_backend("reference"):
        block(x)
    assert str(caught.value).startswith(str(expected.value))
    assert all(torch.equal(tensor, before[key]) for key, tensor in block.state_dict().items())


NORM_DTYPES = [(F64, torch.float32), (torch.float32, F64), (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("maps", "vectors"), NORM_DTYPES, ids=str)
def test_a_norm_of_another_dtype_is_torchs_to_refuse(maps, vectors):
    block, x = fresh(TRAINED[3], maps)
    block.bn2.to(vectors)
    with use_backend("reference"):
        assert block.untrainable_reason(x) == f"bn2 has its weight in {vectors}, the input is {maps}"
        with pytest.raises(RuntimeError, match="mixed dtype"):
            block(x)


def test_float32_norms_of_half_precision_maps():
    """As autocast's, but with filters of the maps' dtype."""
    block, x = fresh(TRAINED[3], torch.bfloat16)
    for norm in (block.bn1, block.bn2, block.bn3):
        norm.float()
    ours, theirs = step(block, x), step(copy.deepcopy(block), x, backend="auto")
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: t.dtype for name, t in theirs.items()}


@pytest.mark.parametrize("name", ["residual of other channels", "option A to other channels"])
def test_inference_too_adds_no_shortcut_of_other_channels(name):
    block, x = fresh(TRAINED[3], training=False)
    WRONG[name][0](block)
    block.eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match="must match the size of tensor b"):
        block(x)


def test_one_channel_is_broadcast_as_in_torch():
    block = Bottleneck(1, 4).double().train()
    x = torch.randn(2, 1, 5, 6, dtype=F64)
    ours, theirs = step(copy.deepcopy(block), x), step(block, x, backend="auto")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_input_that_requires_a_gradient_under_inference_mode():
    """No error in torch, and none here: the batch counts, and there is nothing to differentiate."""
    block, x = fresh(TRAINED[5])
    twin = copy.deepcopy(block)
    x.requires_grad_()
    with torch.inference_mode():
        theirs = twin(x)
        with use_backend("reference"), dispatch.recording() as decisions:
            ours = block(x)
    assert decisions[0].unfused_reason is None and not ours.requires_grad
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for name, expected in twin.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], expected, rtol=1e-12, atol=1e-12)
