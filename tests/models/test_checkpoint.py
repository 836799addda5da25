"""Weights from local files: every layout that is accepted, and one clear error for everything else."""

import sys

import pytest
import torch
from torch.testing import assert_close

from fused_resnet import ArgumentError, models
from fused_resnet.models.checkpoint import load_state, read_state_dict
from tests.support.twins import ABSENT, same, saved, small_state, torchvision


@pytest.fixture(scope="module")
def state():
    return small_state()


def without_counters(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


LAYOUTS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 90, "state_dict": state, "best": 76.1},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "data_parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "wrapped_data_parallel": lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
    "old": without_counters,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_checkpoint_layouts(state, tmp_path, layout):
    same(models.resnet18(weights=saved(layout(state), tmp_path / "w.pth")), state)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "model_best.pth.tar", "weights_without_suffix"])
def test_file_names(state, tmp_path, monkeypatch, name):
    path = saved(state, tmp_path / name)
    same(models.resnet18(weights=str(path)), state)
    monkeypatch.chdir(tmp_path)
    same(models.resnet18(weights=name), state)


def test_home_folder(state, tmp_path, monkeypatch):
    saved(state, tmp_path / "w.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    same(models.resnet18(weights="~/w.pth"), state)


def test_safetensors(state, tmp_path):
    torch_format = pytest.importorskip("safetensors.torch", reason="the safetensors package is not installed")
    path = tmp_path / "w.safetensors"
    torch_format.save_file(state, path)
    same(models.resnet18(weights=path), state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArgumentError, match=r"w\.safetensors cannot be read"):
        models.resnet18(weights=path)


def test_safetensors_not_installed(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        models.resnet18(weights=path)


def test_other_dtype_is_cast(state, tmp_path):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    model = models.resnet18(weights=saved(half, tmp_path / "half.pth"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_close(model.conv1.weight, half["conv1.weight"].float())


def test_hash_in_a_local_name(state, tmp_path):
    path = saved(state, tmp_path / "resnet18.pth", hashed=True)
    same(models.resnet18(weights=path), state)
    wrong = path.rename(tmp_path / "resnet18-20260131.pth")
    with pytest.raises(ArgumentError, match="begins with 20260131, its content has [0-9a-f]{64}.*rename the file"):
        models.resnet18(weights=wrong)


@pytest.mark.skipif(torchvision is None, reason=ABSENT)
def test_norm_without_counters(state, tmp_path):
    norm = torchvision.ops.FrozenBatchNorm2d
    model = models.resnet18(weights=saved(state, tmp_path / "w.pth"), norm_layer=norm)
    same(model, without_counters(state))


# What cannot be loaded


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_but_tensors_is_unpickled(tmp_path):
    path = saved({"conv1.weight": Payload(tmp_path / "owned")}, tmp_path / "w.pth")
    with pytest.raises(ArgumentError, match=r"weights_only=True refuses; save model.state_dict\(\)"):
        models.resnet18(weights=path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"<html>404</html>"])
def test_damaged_file(state, tmp_path, damage):
    path = saved(state, tmp_path / "w.pth")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArgumentError, match=r"w\.pth cannot be read"):
        models.resnet18(weights=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds Tensor; expected a state dict"),
        ({}, "holds an empty dict"),
        ({"epoch": 3, "net": {}}, "holds int under 'epoch'"),
        ({0: torch.zeros(3)}, "holds Tensor under 0"),
    ],
)
def test_something_else_than_named_tensors(tmp_path, content, message):
    with pytest.raises(ArgumentError, match=message):
        read_state_dict(saved(content, tmp_path / "w.pth"))


def test_file_of_another_network(state, tmp_path):
    path = saved(state, tmp_path / "w.pth")
    with pytest.raises(ArgumentError) as error:
        models.resnet50(weights=path)
    message = str(error.value)
    assert message.startswith(f"resnet50: {path} does not fit this ResNet; ")
    assert "missing: layer1.0.conv3.weight, layer1.0.bn3.weight" in message
    assert "of another shape: layer1.0.conv1.weight (64, 64, 3, 3) for (64, 64, 1, 1)" in message
    assert "..." in message and len(message) < 1000
    with pytest.raises(ArgumentError, match=r"1 unexpected: fc\.scale\.$"):
        models.resnet18(weights=saved({**state, "fc.scale": torch.ones(1)}, path))


def test_a_model_that_does_not_fit_stays_as_it_is(state):
    model = models.resnet18()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=r"2 of another shape: fc.weight \(2, 512\) for \(1000, 512\), fc.bias"):
        load_state(model, state, "two classes")
    same(model, before)


def test_directory_is_no_weights_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        models.resnet50(weights=tmp_path)
