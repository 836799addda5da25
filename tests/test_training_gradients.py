"""Whole networks: the error of every parameter's gradient against float64, beside eager's in the same dtype.

A ReLU that flips near zero moves a gradient by far more than rounding does, in ours or in eager's by chance.  In
bfloat16 flips are everywhere and average out: errors are summed over the seeds.  In float32 they are rare: the median
over the seeds leaves them out.
"""

import copy
import statistics

import pytest
import torch
from torch import nn

import fused_resnet
from fused_resnet import use_backend

FACTOR = 1.25  # of eager's error, for every parameter


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums, and so the errors to be compared, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gradients(model, x, labels, backend, amp=None):
    model = copy.deepcopy(model)
    with use_backend(backend), torch.autocast("cpu", amp, enabled=amp is not None):
        logits = model(x)
    nn.functional.cross_entropy(logits.to(x.dtype), labels).backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def errors(name, seed, batch, amp):
    """By parameter: ours and eager's error, relative to the gradient's own size."""
    torch.manual_seed(seed)
    model = getattr(fused_resnet, name)(num_classes=10).train()
    for block in model.modules():
        if isinstance(block, fused_resnet.BasicBlock | fused_resnet.Bottleneck):
            # as training leaves them; at one, the noise of sixteen random blocks drowns every difference
            nn.init.constant_(block.chain()[-1][1].weight, 0.2)
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    exact = gradients(copy.deepcopy(model).double(), x.double(), labels, "auto")
    ours, eager = (gradients(model, x, labels, backend, amp) for backend in ("reference", "auto"))
    size = {name: gradient.norm() for name, gradient in exact.items()}
    return {key: [((one[key] - exact[key]).norm() / size[key]).item() for one in (ours, eager)] for key in exact}


def ratios(name, seeds, batch, amp, typical):
    found = [errors(name, seed, batch, amp) for seed in range(seeds)]
    return {key: typical([one[key][0] for one in found]) / typical([one[key][1] for one in found]) for key in found[0]}


def root_mean_square(values):
    return statistics.fmean(value * value for value in values) ** 0.5


@pytest.mark.parametrize(("name", "seeds"), [("resnet18", 4), ("resnet50", 3)])
def test_bfloat16_gradients_are_nearer_to_the_truth_than_eagers(name, seeds):
    found = ratios(name, seeds, 4, torch.bfloat16, root_mean_square)
    assert statistics.median(found.values()) < 1
    above = {key: ratio for key, ratio in found.items() if ratio > FACTOR}
    assert not above


@pytest.mark.parametrize(("name", "seeds"), [("resnet18", 7), ("resnet50", 7)])
def test_float32_gradients_are_as_near_to_the_truth_as_eagers(name, seeds):
    """Eager's median is not asked to be above ours: its batch norm on a CPU sums in float64, ours in float32."""
    found = ratios(name, seeds, 2, None, statistics.median)
    above = {key: ratio for key, ratio in found.items() if ratio > FACTOR}
    assert not above
