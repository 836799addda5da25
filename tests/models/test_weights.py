"""`weights=`: what names, enum members and old arguments stand for, downloads, and what is refused."""

import enum
import pathlib
import re
from types import SimpleNamespace

import pytest
import torch

from fused_resnet import ArgumentError, models
from fused_resnet.models import weights as weights_module
from fused_resnet.models.weights import HOST, PUBLISHED, resolve_weights
from tests.support.twins import ABSENT, same, saved, small_state, torchvision

needs_torchvision = pytest.mark.skipif(torchvision is None, reason=ABSENT)


@pytest.fixture(scope="module")
def state():
    return small_state()


# Published weights, from a file:// host


@pytest.fixture
def host(state, tmp_path, monkeypatch):
    """A host that publishes `state` as ResNet-18's weights, and an empty cache; the published file's path."""
    remote = tmp_path / "remote"
    remote.mkdir()
    path = saved(state, remote / "resnet18.pth", hashed=True)
    published = weights_module.Published("ResNet18_Weights", {"IMAGENET1K_V1": path.name}, num_classes=2)
    monkeypatch.setitem(PUBLISHED, "resnet18", published)
    monkeypatch.setattr(weights_module, "HOST", remote.as_uri() + "/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "hub" / "checkpoints"


@needs_torchvision
@pytest.mark.parametrize("name", models.TORCHVISION_MODELS)
def test_table_is_torchvisions(name):
    members = torchvision.models.get_model_weights(name)
    published = PUBLISHED[name]
    assert published.enum == members.__name__
    assert {member.name: member.url for member in members} == {
        member: HOST + file for member, file in published.files.items()
    }
    assert published.default == members.DEFAULT.name
    assert {len(member.meta["categories"]) for member in members} == {published.num_classes}
    for member in (*members, members.DEFAULT):
        source = resolve_weights(name, member)
        assert source == resolve_weights(name, member.name) == resolve_weights(name, str(member))
        assert (source.url, source.num_classes) == (member.url, 1000)
    assert resolve_weights(name, "DEFAULT").url == members.DEFAULT.url


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.DEFAULT"])
def test_name_is_downloaded_once(host, cache, state, name, capfd):
    same(models.resnet18(weights=name, progress=False), state)
    assert [file.name for file in cache.iterdir()] == [host.name]
    host.unlink()
    same(models.resnet18(weights=name, num_classes=2), state)
    assert capfd.readouterr().err == ""


def test_progress_is_shown(host, capfd):
    models.resnet18(weights="DEFAULT")
    assert "100" in capfd.readouterr().err


@needs_torchvision
def test_enum_member(host, state, monkeypatch):
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(member.value, "url", host.as_uri())
    monkeypatch.setitem(member.meta, "categories", ["cat", "dog"])
    same(models.resnet18(weights=member, progress=False), state)


def test_any_object_with_url_and_meta(host, state):
    weights = SimpleNamespace(url=host.as_uri(), meta={"categories": ["cat", "dog"]})
    same(models.resnet18(weights=weights, progress=False), state)
    weights.meta = {}
    same(models.resnet18(weights=weights, num_classes=2), state)


def test_wrong_hash_is_not_kept(host, cache):
    host.write_bytes(host.read_bytes() + b"x")
    with pytest.raises(ArgumentError, match=rf"{host.name}: invalid hash value .* thrown away"):
        models.resnet18(weights="DEFAULT", progress=False)
    assert list(cache.iterdir()) == []


def test_cached_file_is_checked(host, cache):
    cache.mkdir(parents=True)
    (cache / host.name).write_bytes(b"half a download")
    with pytest.raises(ArgumentError, match="promises a sha256 that begins with .* Delete it"):
        models.resnet18(weights="DEFAULT")


def test_unreachable_host(host):
    host.unlink()
    with pytest.raises(OSError, match=rf"{host.name} could not be downloaded .* pass its path as weights="):
        models.resnet18(weights="DEFAULT", progress=False)


# The interface of before torchvision 0.13


@pytest.mark.parametrize(
    ("args", "kwargs", "warned"),
    [
        ((), {"pretrained": True}, ["'pretrained', .* weights='IMAGENET1K_V1'"]),
        ((True,), {}, ["'weights' as a keyword", "'pretrained', .* weights='IMAGENET1K_V1'"]),
        ((True, False), {}, ["'weights' as a keyword", "'progress' as a keyword", "'pretrained'"]),
        (("DEFAULT",), {}, ["'weights' as a keyword"]),
        ((), {"weights": True}, ["'pretrained', .* weights='IMAGENET1K_V1'"]),
    ],
)
def test_legacy_arguments(host, state, args, kwargs, warned):
    with pytest.warns(UserWarning) as record:
        same(models.resnet18(*args, **kwargs), state)
    assert len(record) == len(warned)
    for warning, pattern in zip(record, warned):
        assert re.search(pattern, str(warning.message)), warning.message
        assert warning.filename == __file__


@pytest.mark.parametrize("kwargs", [{"pretrained": False}, {"weights": False}])
def test_legacy_false_is_none(kwargs):
    with pytest.warns(UserWarning, match="weights=None"):
        torch.manual_seed(5)
        model = models.resnet18(**kwargs)
    torch.manual_seed(5)
    same(model, models.resnet18().state_dict())


@needs_torchvision
def test_legacy_means_torchvisions_weights(monkeypatch, tmp_path):
    """pretrained=True names the same file in both."""
    asked = []

    def stop(url, *args, **kwargs):
        asked.append(url)
        raise OSError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", stop)
    for module in (models, torchvision.models):
        with pytest.warns(UserWarning), pytest.raises(OSError, match="no network"):
            module.resnet50(pretrained=True)
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((None, True, 10), {}, "at most 2 positional arguments"),
        ((None,), {"weights": None}, "multiple values for argument 'weights'"),
        ((), {"weights": None, "pretrained": True}, "both 'weights' and its deprecated form 'pretrained'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*positional is deprecated")
def test_legacy_misuse(args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        models.resnet18(*args, **kwargs)


# What are no weights


def test_number_of_classes_must_agree(state, tmp_path):
    with pytest.raises(ValueError, match="The parameter 'num_classes' expected value 2 but got 10 instead."):
        models.resnet18(weights=saved(state, tmp_path / "w.pth"), num_classes=10)
    with pytest.raises(ValueError, match="The parameter 'num_classes' expected value 1000 but got 10 instead."):
        models.resnet18(weights="DEFAULT", num_classes=10)


@needs_torchvision
def test_number_of_classes_must_agree_as_torchvision_says_it():
    member = torchvision.models.ResNet50_Weights.DEFAULT
    messages = []
    for module in (models, torchvision.models):
        with pytest.raises(ValueError) as error:
            module.resnet50(weights=member, num_classes=10)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@needs_torchvision
@pytest.mark.parametrize("other", ["ResNet18_Weights", "ResNeXt50_32X4D_Weights", "VGG16_Weights"])
def test_enum_of_another_network(other):
    messages = []
    for module in (models, torchvision.models):
        with pytest.raises(TypeError) as error:
            module.resnet50(weights=getattr(torchvision.models, other).DEFAULT)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("IMAGENET1K_V3", ValueError, "unknown weights 'IMAGENET1K_V3'; expected one of 'IMAGENET1K_V1', 'IMAGENET1"),
        ("imagenet", ValueError, "unknown weights 'imagenet'"),
        ("ResNet18_Weights.DEFAULT", ValueError, "a member of torchvision's ResNet50_Weights, or a local"),
        ("https://example.org/w.pth", ValueError, "unknown weights 'https://example.org/w.pth'"),
        ("missing.pth", FileNotFoundError, r"missing\.pth does not exist"),
        (pathlib.Path("missing"), FileNotFoundError, "missing does not exist"),
        (Color.RED, TypeError, "expected ResNet50_Weights but received Color"),
        (3.5, TypeError, "weights must be one of .*; got float 3.5"),
        ({}, TypeError, "got dict {}"),
    ],
)
def test_not_weights(weights, error, message):
    with pytest.raises(error, match=message):
        models.resnet50(weights=weights)
