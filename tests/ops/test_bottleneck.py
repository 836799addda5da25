"""The op bottleneck_inference: the block's numbers, its refusals, its use in a frozen model, and its CUDA backend."""

import pytest
import torch
from torch import nn

import fused_resnet
from fused_resnet import ArgumentError, Bottleneck, freeze, ops, use_backend
from fused_resnet.backends.cuda import inference
from fused_resnet.blocks import conv1x1
from fused_resnet.ops import dispatch
from tests.kernels.bottleneck.calls import Case, assert_rounded, draw, expected
from tests.support.emulated import needs_compiler
from tests.support.emulated_extension import EmulatedExtension, install


def block_of(c_in, planes, stride, dtype=torch.float64):
    projected = stride > 1 or c_in != 4 * planes
    norm = nn.BatchNorm2d(4 * planes)
    downsample = nn.Sequential(conv1x1(c_in, 4 * planes, stride), norm) if projected else None
    block = Bottleneck(c_in, planes, stride, downsample)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for vector in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(vector, 0.5, 1.5)
    return block.to(dtype).eval()


def arguments_of(block):
    """The block's weights with the scales and shifts of its norms."""
    pairs = list(block.chain())
    if block.downsample is not None:
        pairs.append(tuple(block.downsample))
    found = []
    for conv, norm in pairs:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        found += [conv.weight, scale, norm.bias - norm.running_mean * scale]
    return [tensor.detach() for tensor in found] + [None] * (12 - len(found))


SHAPES = [(16, 4, 1), (8, 4, 1), (16, 8, 2)]


@pytest.mark.parametrize(("c_in", "planes", "stride"), SHAPES)
def test_it_is_the_block(c_in, planes, stride):
    block, x = block_of(c_in, planes, stride), torch.randn(2, c_in, 7, 9, dtype=torch.float64)
    with torch.no_grad():
        y = ops.bottleneck_inference(x, *arguments_of(block), stride)
        torch.testing.assert_close(y, block(x))
    assert ops.bottleneck_inference(x[:0], *arguments_of(block), stride).shape == (0, *y.shape[1:])


def test_a_shortcut_that_adds_channels_is_not_the_op():
    block = block_of(16, 4, 1)
    block.downsample, x = fused_resnet.OptionAShortcut(8, 16), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    block.conv1 = conv1x1(8, 4).double()
    with torch.no_grad(), use_backend("reference"):
        torch.testing.assert_close(freeze(block)(x), block(x))


@pytest.mark.parametrize(("c_in", "planes", "stride"), SHAPES[1:])
def test_opcheck(c_in, planes, stride):
    x = torch.randn(2, c_in, 5, 6)
    arguments = (x, *arguments_of(block_of(c_in, planes, stride, torch.float32)), stride)
    torch.library.opcheck(torch.ops.fused_resnet.bottleneck_inference.default, arguments)


REFUSED = {
    "no 1x1": ({1: torch.zeros(4, 16, 3, 3)}, r"weight1 must be \(K, C, 1, 1\), got \(4, 16, 3, 3\)"),
    "channels": ({4: torch.zeros(4, 5, 3, 3)}, "weight"),
    "vector": ({2: torch.zeros(5)}, r"\(4,\)"),
    "dtype": ({7: torch.zeros(16, 4, 1, 1).half()}, "float16"),
    "half a downsample": ({10: torch.zeros(16, 16, 1, 1)}, "belong together; pass all or none"),
    "stride of an identity": ({13: 2}, r"the shortcut gives \(2, 16, 5, 6\), the branch \(2, 16, 3, 3\)"),
    "stride": ({13: 0}, "stride must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_named(name):
    changed, words = REFUSED[name]
    arguments = [torch.randn(2, 16, 5, 6), *arguments_of(block_of(16, 4, 1, torch.float32)), 1]
    for index, value in changed.items():
        arguments[index] = value
    with pytest.raises(ArgumentError, match=words) as raised:
        ops.bottleneck_inference(*arguments)
    assert str(raised.value).startswith("bottleneck_inference: ")


@pytest.mark.parametrize(("c_in", "planes", "stride"), SHAPES)
def test_a_frozen_block_is_one_op_by_name(c_in, planes, stride):
    block, x = block_of(c_in, planes, stride), torch.randn(2, c_in, 7, 9, dtype=torch.float64)
    frozen = freeze(block)
    with torch.no_grad():
        with use_backend("reference"), dispatch.recording() as decisions:
            whole = frozen(x)
        apart = frozen(x)
        torch.testing.assert_close(whole, block(x))
    assert [d.op for d in decisions if d.op] == ["bottleneck_inference"]
    torch.testing.assert_close(whole, apart)
    assert "ones" not in "".join(frozen.state_dict())


def test_what_the_op_cannot_be_goes_convolution_by_convolution():
    models = (fused_resnet.BasicBlock(8, 8).eval(), fused_resnet.Bottleneck(16, 8, groups=2, base_width=32,
              downsample=nn.Sequential(conv1x1(16, 32), nn.BatchNorm2d(32))).eval())  # fmt: skip
    for model, channels in zip(models, (8, 16), strict=True):
        with use_backend("reference"), dispatch.recording() as decisions, torch.no_grad():
            freeze(model)(torch.randn(1, channels, 4, 4))
        assert {d.op for d in decisions if d.op} == {"conv_scale_shift_act"}


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [Case(1, 9, 11, 64), Case(1, 6, 7, 64, 64), Case(1, 7, 6, 128, 256, 2)], ids=str)
def test_the_backend_reaches_its_kernel(case, dtype, monkeypatch):
    case = Case(**{**vars(case), "dtype": dtype})
    guards = install(monkeypatch, EmulatedExtension(seed=1))
    drawn = draw(case)

    def nchw(tensor):
        if tensor is None or tensor.dim() == 1:
            return tensor
        tensor = tensor[:, None, None] if tensor.dim() == 2 else tensor
        return tensor.permute(0, 3, 1, 2)

    y = inference.bottleneck_inference(*map(nchw, drawn.all), case.stride)
    assert_rounded(y.permute(0, 2, 3, 1), *expected(case, drawn))
    guards.check()
