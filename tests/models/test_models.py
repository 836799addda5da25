"""The ten torchvision builders against torchvision itself: structure, initialisation, arguments and values."""

import copy
import inspect
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fused_resnet import models
from tests.support.parity import model_row
from tests.support.twins import ABSENT, FAMILIES, exactly, settle, torchvision, twins

pytestmark = pytest.mark.skipif(torchvision is None, reason=ABSENT)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Twins that a test must leave as they are."""
    torch.manual_seed(0)
    return twins(request.param)


@pytest.fixture
def copies(pair):
    """Twins that a test may change."""
    return copy.deepcopy(pair[0]), copy.deepcopy(pair[1])


@pytest.fixture
def image():
    return torch.randn(2, 3, 65, 97)


# Structure and initialisation


@pytest.mark.parametrize("name", models.TORCHVISION_MODELS)
def test_builder_matches_torchvision(name):
    built = []
    for module in (models, torchvision.models):
        torch.manual_seed(3)
        built.append(getattr(module, name)().eval())
    ours, theirs = built
    assert repr(ours) == repr(theirs)
    assert [key for key, _ in ours.named_children()] == [key for key, _ in theirs.named_children()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for attribute in ("inplanes", "dilation", "groups", "base_width", "_norm_layer"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key

    settle(theirs)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for batch in (1, 3):
            x = torch.randn(batch, 3, 97, 129)
            assert_close(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", models.TORCHVISION_MODELS)
def test_signature(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (models, torchvision.models))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_resnet_signature():
    ours, theirs = (inspect.signature(module.ResNet).parameters for module in (models, torchvision.models))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


VARIANTS = {
    "num_classes": ("resnet18", {"num_classes": 7}),
    "zero_init_basic": ("resnet18", {"zero_init_residual": True, "num_classes": 3}),
    "zero_init_bottleneck": ("resnet50", {"zero_init_residual": True, "num_classes": 3}),
    "dilated": ("resnet50", {"replace_stride_with_dilation": [False, True, True]}),
    "grouped_wide": ("resnet50", {"groups": 2, "width_per_group": 96}),
    "group_norm": ("resnet18", {"norm_layer": partial(nn.GroupNorm, 8)}),
    "no_statistics": ("resnet18", {"norm_layer": partial(nn.BatchNorm2d, track_running_stats=False)}),
    "eps": ("resnet18", {"norm_layer": partial(nn.BatchNorm2d, eps=0.1)}),
}


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS.values(), ids=VARIANTS)
def test_constructor_arguments(name, kwargs):
    built = []
    for module in (models, torchvision.models):
        torch.manual_seed(4)
        built.append(getattr(module, name)(**kwargs).eval())
    ours, theirs = built
    assert repr(ours) == repr(theirs)
    assert (ours.dilation, ours.inplanes) == (theirs.dilation, theirs.inplanes)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        row = model_row(ours(x), theirs, x)
    assert row.passed, row


def test_frozen_batch_norm():
    ours, theirs = twins("resnet18")
    frozen = [module.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d) for module in (models, torchvision.models)]
    for model in frozen:
        model.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert_close(frozen[0](x), frozen[1](x))
        assert_close(frozen[0](x), ours(x))


WRONG_ARGUMENTS = {
    "basic_groups": ("resnet18", {"groups": 2}),
    "basic_width": ("resnet34", {"width_per_group": 128}),
    "basic_dilation": ("resnet18", {"replace_stride_with_dilation": [False, False, True]}),
    "dilation_length": ("resnet50", {"replace_stride_with_dilation": (True, False)}),
    "resnext_groups": ("resnext50_32x4d", {"groups": 4}),
    "resnext_width": ("resnext101_64x4d", {"width_per_group": 8}),
    "wide_width": ("wide_resnet50_2", {"width_per_group": 64}),
    "unknown": ("resnet18", {"classes": 10}),
}


@pytest.mark.parametrize(("name", "kwargs"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_wrong_arguments_say_what_torchvision_says(name, kwargs):
    with pytest.raises(Exception) as theirs:
        getattr(torchvision.models, name)(**kwargs)
    with pytest.raises(theirs.type) as ours:
        getattr(models, name)(**kwargs)
    assert str(ours.value) == str(theirs.value)


# Values


@pytest.mark.parametrize("name", FAMILIES)
def test_error_at_initialisation(name):
    theirs = getattr(torchvision.models, name)().eval()
    ours = getattr(models, name)().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 97, 129)
    with torch.no_grad():
        row = model_row(ours(x), theirs, x)
    assert row.passed, row


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(copies, image, dtype):
    ours, theirs = (model.to(dtype) for model in copies)
    image = image.to(dtype)
    with torch.no_grad():
        row = model_row(ours(image), theirs, image)
    assert row.passed, row


def test_float64(copies, image):
    ours, theirs = (model.double() for model in copies)
    with torch.no_grad():
        assert_close(ours(image.double()), theirs(image.double()))


def test_autocast(pair, image):
    ours, theirs = pair
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = ours(image)
    row = model_row(output, theirs, image, torch.bfloat16)
    assert row.passed, row


INPUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "strided": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
    "one_channel_expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "offset": lambda x: x[1:],
    "cropped": lambda x: x[:, :, 1:60, 3:],
    "flipped": lambda x: x.flip(3),
    "one_pixel": lambda x: x[:, :, :1, :1],
    "empty_batch": lambda x: x[:0],
}


@pytest.mark.parametrize("view", INPUTS.values(), ids=INPUTS)
def test_inputs(pair, image, view):
    ours, theirs = pair
    before = image.clone()
    with torch.no_grad():
        assert_close(ours(view(image)), theirs(view(image)))
    exactly(image, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(pair, image, value):
    ours, theirs = pair
    image[0, 1, 30, 40] = value
    with torch.no_grad():
        expected = theirs(image)
        assert_close(ours(image), expected, equal_nan=True)
    assert not expected[0].isfinite().any()


BAD_INPUTS = {
    "three_dimensional": torch.zeros(3, 65, 65),
    "five_dimensional": torch.zeros(1, 1, 3, 65, 65),
    "one_channel": torch.zeros(1, 1, 65, 65),
    "double": torch.zeros(1, 3, 65, 65, dtype=torch.float64),
    "integer": torch.zeros(1, 3, 65, 65, dtype=torch.uint8),
    "meta": torch.zeros(1, 3, 65, 65, device="meta"),
    "no_pixels": torch.zeros(1, 3, 0, 65),
}


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs_raise_what_torchvision_raises(pair, bad):
    ours, theirs = pair
    with torch.no_grad():
        with pytest.raises(Exception) as expected:
            theirs(bad)
        with pytest.raises(expected.type):
            ours(bad)


def test_training(copies, image):
    ours, theirs = copies
    for model in copies:
        model.train()(image).square().sum().backward()
    for (name, parameter), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        exactly(parameter.grad, expected.grad, msg=name)
    exactly(list(ours.state_dict().values()), list(theirs.state_dict().values()))


def test_gradient_in_eval_mode(pair, image):
    gradients = []
    for model in pair:
        x = image.clone().requires_grad_()
        gradients.append(torch.autograd.grad(model(x).sum(), x)[0])
    exactly(*gradients)


def test_parameters_are_live(copies, image):
    ours, theirs = copies
    with torch.no_grad():
        before = ours(image)
        for model in copies:
            model.layer2[0].bn1.weight.data.neg_()
            model.layer3[1].bn2.running_var.mul_(3)
            model.conv1.weight.data = model.conv1.weight.data.flip(0)
        assert_close(ours(image), theirs(image))
        assert not torch.allclose(before, ours(image))
