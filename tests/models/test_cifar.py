"""The CIFAR networks against the paper's sizes and against the network written out in plain functions."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import fused_resnet
from fused_resnet import models
from fused_resnet.parity import compare, sampled
from tests.support.twins import exactly, settle

# He et al. 2015, table 6: ResNet-n on CIFAR-10, millions of parameters with option-A shortcuts.
PAPER = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4"}


def built(depth: int, **kwargs) -> nn.Module:
    model = getattr(models, f"cifar_resnet{depth}")(**kwargs).eval()
    settle(model)
    return model


def conv_norm(state: dict, block: str, index: str, x: Tensor, stride: int = 1) -> Tensor:
    conv, norm = (f"{block}conv{index}", f"{block}bn{index}") if index else (f"{block}.0", f"{block}.1")
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    vectors = [state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *vectors)


def written_out(state: dict, depth: int, x: Tensor) -> Tensor:
    """The network from the paper's text, from a state dict."""
    x = conv_norm(state, "", "1", x).relu()
    for stage, channels in enumerate((16, 32, 64), start=1):
        for index in range((depth - 2) // 6):
            block = f"layer{stage}.{index}."
            stride = 2 if stage > 1 and index == 0 else 1
            y = conv_norm(state, block, "1", x, stride).relu()
            y = conv_norm(state, block, "2", y)
            if f"{block}downsample.0.weight" in state:
                x = conv_norm(state, f"{block}downsample", "", x, stride)
            elif stride == 2:
                padded = x.new_zeros(y.shape)
                padded[:, channels // 4 : channels // 4 + channels // 2] = x[:, :, ::2, ::2]
                x = padded
            x = (y + x).relu()
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("depth", PAPER)
def test_number_of_parameters(depth):
    with torch.device("meta"):
        model = getattr(models, f"cifar_resnet{depth}")()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    digits = len(PAPER[depth].partition(".")[2])
    assert f"{parameters / 1e6:.{digits}f}" == PAPER[depth]
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_option_b_adds_two_projections():
    plain, projected = (models.cifar_resnet20(shortcut=shortcut) for shortcut in "AB")
    extra = {name: tuple(p.shape) for name, p in projected.named_parameters() if "downsample" in name}
    assert extra == {
        "layer2.0.downsample.0.weight": (32, 16, 1, 1),
        "layer2.0.downsample.1.weight": (32,),
        "layer2.0.downsample.1.bias": (32,),
        "layer3.0.downsample.0.weight": (64, 32, 1, 1),
        "layer3.0.downsample.1.weight": (64,),
        "layer3.0.downsample.1.bias": (64,),
    }
    assert set(projected.state_dict()) > set(plain.state_dict())
    assert not any("downsample" in name for name in plain.state_dict())


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("depth", "size", "batch"), [(20, (32, 32), 3), (20, (31, 33), 1), (56, (17, 8), 2)])
def test_inference(depth, size, batch, shortcut):
    model = built(depth, shortcut=shortcut)
    x = torch.randn(batch, 3, *size)
    with torch.no_grad():
        assert_close(model(x), written_out(model.state_dict(), depth, x))


@pytest.mark.parametrize("depth", [32, 44, 110, 1202])
def test_deep_inference(depth):
    model = built(depth)
    x = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        gold = written_out(copy.deepcopy(model).double().state_dict(), depth, x.double())
        row = compare("logits", model(x), gold, sampled(lambda: written_out(model.state_dict(), depth, x), 4))
    assert row.passed, row


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_gradients(shortcut):
    model = built(20, shortcut=shortcut)
    x = torch.randn(2, 3, 16, 16)
    model(x).square().sum().backward()
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    written_out({**dict(model.named_buffers()), **state}, 20, x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, state[name].grad, rtol=1e-4, atol=1e-5)


def test_training_updates_statistics_and_learns():
    model = models.cifar_resnet20(shortcut="A")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, target = torch.randn(8, 3, 16, 16), torch.arange(8)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model.layer3[2].bn2.num_batches_tracked == 6


def test_initialisation():
    torch.manual_seed(2)
    model = models.cifar_resnet56(zero_init_residual=True)
    weight = model.layer3[1].conv1.weight
    assert_close(weight.std().item(), (2 / (64 * 9)) ** 0.5, rtol=0.02, atol=0)
    assert (model.layer1[0].bn1.weight == 1).all() and (model.layer1[0].bn2.weight == 0).all()
    torch.manual_seed(2)
    exactly(dict(models.cifar_resnet56(zero_init_residual=True).state_dict()), dict(model.state_dict()))


def test_arguments():
    model = models.cifar_resnet20(num_classes=100, norm_layer=lambda channels: nn.GroupNorm(4, channels)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)
    assert isinstance(model.layer2[0].bn1, nn.GroupNorm)
    assert type(model.layer2[0].downsample) is fused_resnet.OptionAShortcut
    assert len(fused_resnet.models.CifarResNet(8).layer1) == 1


@pytest.mark.parametrize("depth", [21, 2, 0, -4])
def test_wrong_depth(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 2 .*, got {depth}"):
        models.CifarResNet(depth)


def test_wrong_shortcut():
    with pytest.raises(ValueError, match="shortcut must be .*, got 'C'"):
        models.cifar_resnet20(shortcut="C")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_trace_script_copy_and_save(shortcut):
    model = built(20, shortcut=shortcut)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        for other in (
            torch.jit.trace(model, torch.randn(1, 3, 16, 16)),
            torch.jit.script(model),
            torch.fx.symbolic_trace(model),
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
        ):
            assert_close(other(x), expected)


def test_inner_hook():
    model = built(20)
    x = torch.randn(2, 3, 32, 32)
    seen = []
    with torch.no_grad():
        expected = model(x)
        model.layer2[0].downsample.register_forward_hook(lambda module, arguments, output: seen.append(output))
        assert_close(model(x), expected)
    assert [tuple(output.shape) for output in seen] == [(2, 32, 16, 16)]
    assert (seen[0][:, :8] == 0).all() and (seen[0][:, 24:] == 0).all()
