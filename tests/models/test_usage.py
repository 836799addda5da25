"""What people do to a torchvision model does the same to ours: extract, hook, cut, trace, copy, save, average."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fused_resnet
from fused_resnet import models
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


def test_graph_node_names(pair):
    from torchvision.models.feature_extraction import get_graph_node_names

    ours, theirs = (get_graph_node_names(model) for model in pair)
    assert ours == theirs


def test_create_feature_extractor(pair, image):
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = ["relu", "layer1.1.relu_1", "layer2.0.add", "layer3.0.downsample.1", "layer4", "flatten", "fc"]
    ours, theirs = (create_feature_extractor(model, nodes) for model in pair)
    with torch.no_grad():
        exactly(ours(image), theirs(image))


def test_intermediate_layer_getter(pair, image):
    from torchvision.models._utils import IntermediateLayerGetter

    ours, theirs = (IntermediateLayerGetter(model, {"layer1": "low", "layer3": "high"}) for model in pair)
    with torch.no_grad():
        assert_close(ours(image), theirs(image))


def test_hooks_on_every_module(copies, image):
    def record(model):
        seen = []
        for name, module in model.named_modules():
            module.register_forward_hook(lambda m, i, output, name=name: seen.append((name, output.clone())))
        with torch.no_grad():
            model(image)
        return seen

    ours, theirs = map(record, copies)
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, output), (_, expected) in zip(ours, theirs, strict=True):
        assert_close(output, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_one_inner_hook_may_change_the_output(copies, image):
    for model in copies:
        model.layer2[1].bn1.register_forward_hook(lambda module, arguments, output: output * 2)
    with torch.no_grad():
        assert_close(copies[0](image), copies[1](image))


def test_hook_is_honoured_after_a_fused_call_and_forgotten_when_removed(copies, image):
    ours, seen = copies[0], []
    with torch.no_grad():
        before = ours(image)
        handle = ours.layer1[0].conv1.register_forward_pre_hook(lambda module, arguments: seen.append(module))
        assert_close(ours(image), before)
        handle.remove()
        exactly(ours(image), before)
    assert seen == [ours.layer1[0].conv1]


def test_sequential_of_children(pair, image):
    ours, theirs = (nn.Sequential(*list(model.children())[:-2]) for model in pair)
    with torch.no_grad():
        assert_close(ours(image), theirs(image))


@pytest.mark.parametrize("stage", ["layer1.0", "layer1", "layer4"])
def test_part_of_a_model(pair, stage):
    ours, theirs = (model.get_submodule(stage) for model in pair)
    x = torch.randn(2, theirs.get_parameter("conv1.weight" if stage[-2] == "." else "0.conv1.weight").shape[1], 9, 13)
    before = x.clone()
    with torch.no_grad():
        assert_close(ours(x), theirs(x))
    exactly(x, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_trace(pair, image):
    ours, theirs = pair
    with torch.no_grad():
        traced = torch.jit.trace(ours, torch.randn(1, 3, 33, 33))
        assert_close(traced(image), theirs(image))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_jit_script(pair, image):
    ours, theirs = pair
    with torch.no_grad():
        scripted = torch.jit.script(ours)
        assert_close(scripted(image), theirs(image))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    with torch.no_grad():
        assert_close(torch.jit.load(buffer)(image), theirs(image))


def test_deepcopy(pair, image):
    ours, _ = pair
    clone = copy.deepcopy(ours)
    with torch.no_grad():
        exactly(clone(image), ours(image))
        clone.fc.weight.zero_()
        clone.layer1[0].bn1.running_mean.add_(1)
        assert not torch.equal(clone(image), ours(image))


def test_pickle(pair, image):
    ours, _ = pair
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    with torch.no_grad():
        for clone in (pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)):
            assert type(clone) is fused_resnet.ResNet
            exactly(clone(image), ours(image))


def test_functional_call(pair, image):
    ours, theirs = pair
    state = {name: tensor.detach() + 0.01 for name, tensor in theirs.state_dict().items() if tensor.is_floating_point()}
    before = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        assert_close(torch.func.functional_call(ours, state, image), torch.func.functional_call(theirs, state, image))
    exactly(dict(ours.state_dict()), dict(before))


def test_func_grad(pair):
    x = torch.randn(1, 3, 33, 33)

    def gradient(model):
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        return torch.func.grad(lambda p: torch.func.functional_call(model, p, x).sum())(parameters)

    exactly(*map(gradient, pair))


def test_averaged_model(copies, image):
    averaged = []
    for model in copies:
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        average.update_parameters(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        average.update_parameters(model)
        averaged.append(average.eval())
    with torch.no_grad():
        assert_close(averaged[0](image), averaged[1](image))


@pytest.mark.parametrize("name", FAMILIES)
def test_meta_device(name, image):
    with torch.device("meta"):
        ours = getattr(models, name)().eval()
    with torch.no_grad():
        assert ours(image.to("meta")).shape == (2, 1000)
    theirs = getattr(torchvision.models, name)().eval()
    settle(theirs)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        assert_close(ours(image), theirs(image))


def test_model_in_channels_last(copies, image):
    ours, theirs = (model.to(memory_format=torch.channels_last) for model in copies)
    with torch.inference_mode():
        assert_close(ours(image), theirs(image))


def test_replaced_classifier(copies, image):
    for model in copies:
        model.fc = nn.Identity()
    with torch.no_grad():
        assert_close(copies[0](image), copies[1](image))
