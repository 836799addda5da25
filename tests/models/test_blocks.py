"""The residual blocks on their own: the fused path equals the unfused one, and gives way where it must."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import fused_resnet
from fused_resnet import BasicBlock, Bottleneck, OptionAShortcut
from fused_resnet.blocks import conv1x1
from fused_resnet.blocks.stem import head_pool, stem_forward
from fused_resnet.ops import dispatch
from tests.support.parity import assert_parity


def randomise(module):
    """Statistics and affine parameters that a mistake in the folding would show in."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            for vector in (norm.running_var, norm.weight):
                if vector is not None:
                    nn.init.uniform_(vector, 0.5, 1.5)
            if norm.bias is not None:
                nn.init.normal_(norm.bias)
    return module.eval()


def projection(inplanes, outplanes, stride):
    return nn.Sequential(conv1x1(inplanes, outplanes, stride), nn.BatchNorm2d(outplanes))


@dataclasses.dataclass(frozen=True)
class BlockCase:
    id: str
    block: type[nn.Module]
    inplanes: int
    planes: int
    stride: int = 1
    shortcut: str = "identity"
    size: tuple[int, int, int] = (2, 9, 11)
    dtype: torch.dtype = torch.float32
    options: tuple[tuple[str, int], ...] = ()
    outputs: tuple[str, ...] = ("y",)

    def module(self):
        torch.manual_seed(7)
        outplanes = self.planes * self.block.expansion
        shortcuts = {
            "identity": lambda: None,
            "projection": lambda: projection(self.inplanes, outplanes, self.stride),
            "option_a": lambda: OptionAShortcut(self.inplanes, outplanes, self.stride),
        }
        block = self.block(self.inplanes, self.planes, self.stride, shortcuts[self.shortcut](), **dict(self.options))
        return randomise(block).to(self.dtype)

    def inputs(self, device="cpu"):
        torch.manual_seed(8)
        n, h, w = self.size
        return {"x": torch.randn(n, self.inplanes, h, w).to(device, self.dtype), "block": self.module().to(device)}


CASES = [
    BlockCase("basic identity", BasicBlock, 8, 8),
    BlockCase("basic projection stride 2", BasicBlock, 8, 16, 2, "projection"),
    BlockCase("basic option A stride 2", BasicBlock, 8, 16, 2, "option_a"),
    BlockCase("basic option A odd difference", BasicBlock, 8, 13, 2, "option_a"),
    BlockCase("bottleneck identity", Bottleneck, 16, 4),
    BlockCase("bottleneck projection", Bottleneck, 8, 4, 1, "projection"),
    BlockCase("bottleneck projection stride 2", Bottleneck, 16, 8, 2, "projection"),
    BlockCase("bottleneck option A stride 2", Bottleneck, 16, 8, 2, "option_a"),
    BlockCase("bottleneck grouped", Bottleneck, 32, 8, options=(("groups", 4), ("base_width", 32))),
    BlockCase("bottleneck dilated", Bottleneck, 16, 4, options=(("dilation", 2),)),
    BlockCase("bottleneck batch 1", Bottleneck, 16, 4, size=(1, 7, 5)),
    BlockCase("bottleneck one pixel", Bottleneck, 16, 4, size=(3, 1, 1)),
    BlockCase("bottleneck empty batch", Bottleneck, 16, 4, size=(0, 7, 5)),
    BlockCase("bottleneck bfloat16", Bottleneck, 16, 4, dtype=torch.bfloat16),
    BlockCase("basic float16", BasicBlock, 8, 8, dtype=torch.float16),
    BlockCase("basic float64", BasicBlock, 8, 8, dtype=torch.float64),
]


def fused(x, block):
    assert block.unfused_reason(x) is None
    return block(x)


def unfused(x, block):
    """The block's modules one by one: `nn.Module` hooks are what keeps it from fusing, here as for a user."""
    block = copy.deepcopy(block).to(x.dtype)
    block.conv1.register_forward_hook(lambda *_: None)
    assert block.unfused_reason(x) == "conv1 has a hook"
    return block(x)


@pytest.mark.parametrize("case", [case for case in CASES if case.size[0]], ids=lambda case: case.id)
def test_fused_block_equals_its_modules(case):
    assert_parity(fused, unfused, case)


def test_empty_batch_keeps_its_shape():
    inputs = next(case for case in CASES if not case.size[0]).inputs()
    with torch.no_grad():
        assert fused(**inputs).shape == (0, 16, 7, 5)


@pytest.mark.parametrize("backend", ["reference", "onednn"])
def test_blocks_by_name(backend):
    assert_parity(fused, unfused, CASES[6], backend=backend)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_block_keeps_the_memory_format(layout):
    inputs = CASES[4].inputs()
    with torch.no_grad():
        y = fused(inputs["x"].contiguous(memory_format=layout), inputs["block"])
    assert y.is_contiguous(memory_format=layout)


def _foreign_norm(block):
    block.bn2 = nn.GroupNorm(2, 4)


def _hook_on_relu(block):
    block.relu.register_forward_pre_hook(lambda *_: None)


def _norm_in_training(block):
    block.bn1.train()


def _no_statistics(block):
    block.bn1 = nn.BatchNorm2d(4, track_running_stats=False).eval()


def _foreign_activation(block):
    block.relu = nn.SiLU()


def _biased_conv(block):
    block.conv1 = nn.Conv2d(16, 4, 1)


def _circular_padding(block):
    block.conv2.padding_mode = "circular"
    block.conv2._reversed_padding_repeated_twice = [1, 1, 1, 1]


def _parametrized(block):
    nn.utils.parametrize.register_parametrization(block.conv1, "weight", nn.Identity())


def _foreign_shortcut(block):
    block.downsample = nn.Identity()


@pytest.mark.parametrize(
    "change, reason",
    [
        (_foreign_norm, "bn2 is GroupNorm, not BatchNorm2d"),
        (_hook_on_relu, "relu has a hook"),
        (_norm_in_training, "bn1 is in training mode"),
        (_no_statistics, "bn1 keeps no running statistics"),
        (_foreign_activation, "relu is SiLU, not ReLU"),
        (_biased_conv, "conv1 has a bias"),
        (_circular_padding, "conv2 pads with 'circular', (1, 1)"),
        (_parametrized, "conv1 is ParametrizedConv2d, not Conv2d"),
        (_foreign_shortcut, "downsample is Identity, not (conv, norm) or OptionAShortcut"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_what_a_fused_op_cannot_stand_for_runs_unfused(change, reason):
    inputs = CASES[4].inputs()
    change(inputs["block"])
    with torch.no_grad():
        assert inputs["block"].unfused_reason(inputs["x"]) == reason
        assert inputs["block"](inputs["x"]).shape == inputs["x"].shape


def test_auto_leaves_small_maps_on_a_cpu_to_torch(monkeypatch):
    inputs = CASES[4].inputs()
    monkeypatch.setattr(dispatch, "SMALL_MAP", inputs["x"].numel() + 1)

    def path():
        with dispatch.recording() as decisions:
            inputs["block"](inputs["x"])
        return decisions[0].unfused_reason

    with torch.no_grad():
        assert "as fast on a CPU" in path()
        with fused_resnet.use_backend("onednn"):
            assert path() is None, "a backend asked for by name is used"
        monkeypatch.setattr(dispatch, "SMALL_MAP", inputs["x"].numel())
        assert path() is None


def test_gradients_take_the_unfused_path():
    inputs = CASES[4].inputs()
    block, x = inputs["block"], inputs["x"]
    assert "under torch.no_grad()" in block.unfused_reason(x)
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    block.requires_grad_(False)
    assert block.unfused_reason(x) is None
    assert block.unfused_reason(x.requires_grad_()) == "the input requires a gradient"


def test_transforms_take_the_unfused_path():
    inputs = CASES[4].inputs()
    block, x = inputs["block"].requires_grad_(False), inputs["x"]
    mapped = torch.func.vmap(lambda image: block(image[None])[0])(x)
    torch.testing.assert_close(mapped, block(x))
    _, tangent = torch.func.jvp(block, (x,), (torch.ones_like(x),))
    assert tangent.abs().sum() > 0


def test_a_global_hook_takes_the_unfused_path():
    inputs = CASES[4].inputs()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        with torch.no_grad():
            inputs["block"](inputs["x"])
    finally:
        handle.remove()
    assert seen.count("Conv2d") == 3


def test_torch_words_for_torch_mistakes():
    inputs = CASES[4].inputs()
    block, x = inputs["block"], inputs["x"]
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="(?i)input type|expected.*type|same dtype"):
            block(x.double())
        with pytest.raises((RuntimeError, ValueError), match="4D"):
            block(x[0])
        with pytest.raises(RuntimeError, match="expects x to have 16 channels, got 15"):
            block(x[:, :15])


def test_option_a_shortcut_refuses_to_drop_channels():
    with pytest.raises(ValueError, match="can only add channels"):
        OptionAShortcut(8, 4)


def test_stem_and_head_equal_their_modules():
    torch.manual_seed(3)
    stem = randomise(
        nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    )
    head = nn.AdaptiveAvgPool2d(1)
    x = torch.randn(2, 3, 37, 41)
    with torch.no_grad():
        torch.testing.assert_close(stem_forward(*stem, x), stem(x))
        torch.testing.assert_close(stem_forward(*stem[:3], None, x), stem[:3](x))
        torch.testing.assert_close(head_pool(head, x), head(x))


@pytest.mark.parametrize(
    "pool, reason",
    [
        (nn.Identity(), "maxpool is Identity, not MaxPool2d"),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "maxpool is not a plain square window"),
    ],
    ids=["identity", "ceil mode"],
)
def test_a_foreign_stem_runs_unfused(pool, reason):
    stem = randomise(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), pool))
    x = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        assert fused_resnet.blocks.stem.stem_unfused_reason(*stem, x) == reason
        torch.testing.assert_close(stem_forward(*stem, x), stem(x))
