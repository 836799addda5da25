"""`explain` tells, block by block, what a forward pass does, and leaves no trace."""

import copy

import torch
from torch import nn

import fused_resnet
from fused_resnet import explain


def rows(model, x):
    return {row.name: row for row in explain(model, x).rows}


def test_each_part_is_named_with_its_path_backend_and_reason():
    model, x = fused_resnet.resnet18().eval(), torch.randn(1, 3, 33, 33)
    model.layer2[0].conv1.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        found = rows(model, x)
        table = str(explain(model, x))
    assert list(found)[:2] == ["conv1", "layer1.0"] and list(found)[-1] == "avgpool" and len(found) == 10
    assert (found["layer1.0"].path, found["layer1.0"].backend) == ("fused", "onednn")
    assert (found["layer2.0"].path, found["layer2.0"].reason) == ("unfused", "conv1 has a hook")
    assert found["layer2.0"].kind == "BasicBlock"
    assert table.count("\n") == 11 and "conv1 has a hook" in table


def test_the_backend_asked_for_is_shown():
    model, x = fused_resnet.resnet18().eval(), torch.randn(1, 3, 33, 33)
    with torch.no_grad(), fused_resnet.use_backend("reference"):
        row = rows(model, x)["layer1.0"]
    assert (row.backend, row.reason) == ("reference", "asked for by name")


def test_auto_says_what_it_passed_over():
    model = fused_resnet.resnet18().eval().double()
    with torch.no_grad():
        row = rows(model, torch.randn(1, 3, 33, 33).double())["layer1.0"]
    assert row.backend == "reference" and "not onednn: it takes float32, x is float64" in row.reason


def test_gradients_and_training_are_explained_without_touching_the_model():
    model, x = fused_resnet.resnet18(), torch.randn(2, 3, 33, 33)
    before = copy.deepcopy(model.state_dict())
    assert "is in training mode" in rows(model, x)["layer1.0"].reason
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "require gradients" in rows(model.eval(), x)["layer1.0"].reason


def test_a_frozen_model_and_a_model_within_a_model():
    model, x = fused_resnet.resnet18().eval(), torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        frozen = explain(fused_resnet.freeze(model), x).rows
        nested = rows(nn.Sequential(model), x)
    assert [row.kind for row in frozen] == ["FrozenStem"] + 8 * ["FrozenBlock"]
    assert all(row.path == "fused" and "packed" in row.reason for row in frozen)
    assert nested["0.layer4.1"].path == "fused"
