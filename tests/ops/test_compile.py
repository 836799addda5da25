"""torch.compile without a graph break and torch.export, of the ops alone and of a model that uses them."""

from __future__ import annotations

import re
import shutil
import warnings

import pytest
import torch
from torch import nn

import fused_resnet
from fused_resnet import ops
from fused_resnet.blocks import eligibility
from fused_resnet.ops import dispatch


class AllOps(nn.Module):
    """Stem, a convolution with an option-A shortcut, the shortcut alone, and the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.conv, self.norm = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x):
        def vectors(norm):
            return norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps

        x = ops.conv_bn_relu_maxpool(x, self.stem.weight, *vectors(self.stem_norm))
        y = ops.conv_scale_shift_act(
            x, self.conv.weight, *vectors(self.norm), residual=x, stride=(2, 2), padding=(1, 1), residual_stride=2
        )
        return ops.global_avg_pool(y + ops.option_a_shortcut(x, 16, 2))


MODELS = {"ops": AllOps, "resnet18": fused_resnet.resnet18, "cifar_resnet20": fused_resnet.cifar_resnet20}


def model_and_image(name):
    torch.compiler.reset()
    return MODELS[name]().eval(), torch.randn(2, 3, 33, 47)


FUSED = torch.ops.fused_resnet.conv_scale_shift_act.default


@pytest.mark.parametrize("name", MODELS)
def test_compiles_without_a_graph_break(name):
    model, image = model_and_image(name)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), model(image))


def test_a_compiled_model_keeps_its_fused_ops():
    model, image = model_and_image("resnet18")
    graphs = []

    def capture(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return graph

    with torch.no_grad():
        torch.compile(model, fullgraph=True, backend=capture)(image)
    assert len(graphs) == 1 and graphs[0].count(FUSED) == 19  # 16 in the blocks and 3 projections


def test_explaining_and_recording_leave_a_compiled_model_as_it_is():
    """Compiled code tells nobody what it decides: it would be compiled again for each listener, in any thread."""
    model, image = model_and_image("cifar_resnet20")
    compiled_times = []

    def count(graph, inputs):
        compiled_times.append(graph)
        return graph

    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=count)
        compiled(image)
        with dispatch.recording(), fused_resnet.use_backend("reference"):
            compiled(image)
        rows = fused_resnet.explain(compiled, image).rows
        assert [row.name.removeprefix("_orig_mod.") for row in rows] == [
            row.name for row in fused_resnet.explain(model, image).rows
        ]
    assert {row.backend for row in rows} == {"onednn"} and len(compiled_times) == 1


def test_compiles_training_without_a_graph_break_whatever_is_asked_for():
    model, image = model_and_image("cifar_resnet20")
    with fused_resnet.use_backend("reference"):
        torch.compile(model.train(), fullgraph=True, backend="aot_eager")(image).sum().backward()
    assert model.conv1.weight.grad is not None


def test_compiles_with_dynamic_sizes():
    model, _ = model_and_image("ops")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for size in ((2, 3, 33, 47), (3, 3, 40, 32)):
            image = torch.randn(size)
            torch.testing.assert_close(compiled(image), model(image))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, there is no g++")
def test_inductor_compiles_the_ops():
    model, image = model_and_image("ops")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(image), model(image))


@pytest.mark.parametrize("name", MODELS)
def test_exports(name):
    model, image = model_and_image(name)
    with torch.no_grad():
        program = torch.export.export(model, (image,))
        torch.testing.assert_close(program.module()(image), model(image))
    targets = {node.target for node in program.graph.nodes}
    assert FUSED in targets


def test_exports_with_a_dynamic_batch():
    model, image = model_and_image("resnet18")
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}})
        for batch in (1, 5):
            other = torch.randn(batch, 3, 33, 47)
            torch.testing.assert_close(program.module()(other), model(other))


def test_compiled_bad_input_is_refused_as_in_eager():
    with pytest.raises(Exception, match="expects x to have 3 channels, got 4"):
        torch.compile(AllOps().eval(), fullgraph=True, backend="aot_eager")(torch.randn(1, 4, 33, 33))


def test_devices_without_autocast_are_those_that_torch_names():
    """Asking torch instead would break the graph on torch 2.11."""
    with pytest.raises(RuntimeError) as error:
        torch.device("nosuch")
    devices = re.search(r"one of (.*) device type", str(error.value))[1].split(", ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the names are no longer used
        without = {device for device in devices if not torch.amp.is_autocast_available(device)}
    assert "meta" in without and without == eligibility.NO_AUTOCAST & set(devices)
