"""The frozen model: the live model's numbers, its own memory, and a refusal of what it cannot do."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fused_resnet
from fused_resnet import freeze
from fused_resnet.backends import onednn
from fused_resnet.frozen import FrozenConv, SafeRange
from tests.models.test_blocks import CASES, randomise
from tests.support.parity import model_row


@pytest.fixture
def model():
    torch.manual_seed(5)
    return randomise(fused_resnet.resnet18(num_classes=10))


@pytest.fixture
def x():
    return torch.randn(2, 3, 65, 49)


def rms(a, b):
    return ((a.double() - b.double()).square().mean() / b.double().square().mean()).sqrt().item()


@pytest.mark.parametrize("builder", ["resnet18", "resnet50", "resnext50_32x4d", "cifar_resnet20"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_frozen_model_gives_the_live_models_numbers(builder, backend):
    torch.manual_seed(5)
    live = getattr(fused_resnet, builder)(num_classes=10).eval()
    x = torch.randn(2, 3, 65, 49)
    with torch.no_grad(), fused_resnet.use_backend(backend):
        frozen = freeze(live)
        row = model_row(frozen(x), torch.fx.symbolic_trace(live), x)
        assert row.passed, row
        assert frozen(x[:0]).shape == (0, 10)


@pytest.mark.skipif(onednn.unavailable_reason() is not None, reason=str(onednn.unavailable_reason()))
@pytest.mark.parametrize("overwrite", [False, True])
def test_packed_filters_add_to_maps_of_one_pixel(overwrite):
    """torch 2.11's own fused addition fails there, where x says channels_last in its strides."""
    x = torch.randn(2, 16).as_strided((2, 16, 1, 1), (16, 1, 16, 16))
    weight, bias, residual = torch.randn(24, 16, 1, 1), torch.randn(24), torch.randn(2, 24, 1, 1)
    expected = torch.relu(torch.conv2d(x, weight, bias) + residual)
    geometry = ((1, 1), (0, 0), (1, 1), 1)
    packed = onednn.pack(weight, x.shape, *geometry)
    for nan_free in (False, True):
        y = onednn.packed_conv(x, packed, bias, *geometry, residual.clone(), 1, "relu", nan_free, overwrite)
        torch.testing.assert_close(y, expected)


def test_folding_rounds_once(model, x):
    """The frozen model is as close to the float64 one as the live model is, in single and in half precision."""
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            of_dtype = copy.deepcopy(model).to(dtype)
            row = model_row(freeze(of_dtype)(x.to(dtype)), torch.fx.symbolic_trace(of_dtype), x.to(dtype))
            assert row.passed, row
    conv = FrozenConv(model.conv1, model.bn1)
    scale = model.bn1.weight.double() / (model.bn1.running_var.double() + model.bn1.eps).sqrt()
    exact = (model.conv1.weight.double() * scale.view(-1, 1, 1, 1)).float()
    assert (conv.weight == exact).float().mean() > 0.999  # rsqrt and 1 / sqrt differ in the last bit of float64


@pytest.mark.parametrize("case", CASES[:8], ids=lambda case: case.id)
def test_a_frozen_block(case):
    inputs = case.inputs()
    with torch.no_grad():
        torch.testing.assert_close(
            freeze(inputs["block"])(inputs["x"]), inputs["block"](inputs["x"]), rtol=1e-5, atol=1e-5
        )


def test_it_shares_nothing_with_its_source(model, x):
    with torch.no_grad():
        frozen = freeze(model)
        before = frozen(x)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
        assert torch.equal(frozen(x), before)
    own = {tensor.data_ptr() for tensor in frozen.buffers()}
    assert not own & {tensor.data_ptr() for tensor in model.parameters()}
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_it_notices_that_its_source_changed(model, x):
    frozen = freeze(model)
    with torch.no_grad():
        model.layer1[0].conv1.weight.add_(1)
        with pytest.raises(RuntimeError, match="has changed since; call fused_resnet.freeze"):
            frozen(x)
    frozen = freeze(model)
    model.train()(x)
    with pytest.raises(RuntimeError, match="has changed since"):
        frozen(x)
    frozen = freeze(model.eval())
    del model
    assert frozen(x).shape == (2, 10)


def test_it_refuses_training_and_gradients(model, x):
    frozen = freeze(model)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        frozen.train()
    assert frozen.eval() is frozen and not frozen.training
    with pytest.raises(RuntimeError, match="has no backward"):
        frozen(x.clone().requires_grad_())
    assert not frozen(x).requires_grad
    with pytest.raises(RuntimeError, match="must be 4-D"):
        frozen(x[0])


def test_what_cannot_be_folded_is_named(model):
    with pytest.raises(ValueError, match="bn1 is in training mode; call model.eval"):
        freeze(model.train())
    model.eval()
    model.layer2[1].conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"cannot freeze layer2\.1: conv1 has a hook"):
        freeze(model)
    with pytest.raises(TypeError, match="takes a fused_resnet ResNet or a residual block, got torch.nn"):
        freeze(nn.Linear(2, 2))
    with torch.device("meta"), pytest.raises(ValueError, match="meta device"):
        freeze(fused_resnet.resnet18().eval())
    foreign = fused_resnet.resnet18(norm_layer=lambda c: nn.GroupNorm(2, c)).eval()
    with pytest.raises(ValueError, match="bn1 is GroupNorm"):
        freeze(foreign)


def test_copies_pickles_and_state(model, x):
    with torch.no_grad():
        frozen = freeze(model)
        y = frozen(x)  # packs the filters, which cannot be copied
        assert torch.equal(copy.deepcopy(frozen)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(frozen))(x), y)
        buffer = io.BytesIO()
        torch.save(frozen.state_dict(), buffer)
        buffer.seek(0)
        other = freeze(randomise(fused_resnet.resnet18(num_classes=10)))
        assert not torch.equal(other(x), y)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(x), y)


def test_packed_filters_follow_the_input_size(model):
    frozen = freeze(model)
    with torch.no_grad():
        for size in ((1, 3, 33, 33), (4, 3, 33, 33), (2, 3, 47, 65), (1, 3, 33, 33)):
            x = torch.randn(size)
            torch.testing.assert_close(frozen(x), model(x), rtol=1e-5, atol=1e-5)


def test_tracing_exporting_and_compiling(model, x):
    frozen = freeze(model)
    with torch.no_grad():
        y = frozen(x)
        torch.testing.assert_close(torch.jit.trace(frozen, x)(x), y)
        torch.testing.assert_close(torch.export.export(frozen, (x,)).module()(x), y)
        torch.testing.assert_close(torch.compile(frozen, fullgraph=True, backend="aot_eager")(x), y)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_pixels_come_out_as_in_the_live_model(model, x, value):
    x[1, 0, 3, 4] = value
    with torch.no_grad():
        frozen, live = freeze(model)(x), model(x)
        assert frozen[0].isfinite().all() and torch.equal(frozen.isnan(), live.isnan())


def test_a_nan_in_the_filters_comes_out(model, x):
    model.layer3[0].conv2.weight.data[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        assert freeze(model)(x).isnan().all()


def test_overflow_inside_is_not_swallowed():
    """Every pixel is finite and a block overflows: Inf - Inf is NaN, which oneDNN's ReLU would have made 0."""
    block = randomise(fused_resnet.BasicBlock(8, 8))
    x = torch.randn(1, 8, 9, 9) * 1e37
    with torch.no_grad():
        block.bn1.weight.fill_(100.0)
        frozen, live = freeze(block), block(x)
        assert live.isnan().any() and frozen(x).isnan().any()
        with fused_resnet.use_backend("reference"):
            expected = frozen(x)
        assert torch.equal(frozen(x).isnan(), expected.isnan())


def test_safe_range_measures_only_when_it_must():
    conv = FrozenConv(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1).eval())
    conv.weight.fill_(2.0)

    def advance(bound, value, size=1):
        known = SafeRange()
        known.bound = bound
        safe = known.advance(torch.full((size, 1, 2, 2), value), [conv, conv], [conv])
        return safe, known.bound

    assert advance(torch.inf, -3.0) == (True, 18.0)
    assert advance(1.0, torch.nan) == (True, 6.0), "a bound that suffices is not measured again"
    assert advance(1e37, 5.0) == (True, 30.0)
    assert not advance(1e37, torch.nan)[0]
    assert not advance(1e37, torch.inf)[0]
    assert not advance(1e37, 9e36)[0]
    assert advance(torch.inf, 1.0, size=0)[0]
