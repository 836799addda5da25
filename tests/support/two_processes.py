"""A small network with every kind of block, one step of it, and two processes over gloo that each take one."""

from __future__ import annotations

import datetime
import os
import socket
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_resnet import BasicBlock, Bottleneck, OptionAShortcut, use_backend
from fused_resnet.blocks import conv3x3
from fused_resnet.blocks.stages import stages_forward
from fused_resnet.blocks.stem import stem_forward
from tests.models.test_blocks import projection, randomise
from tests.support import hang

WORLD = 2
F64 = torch.float64


class Net(nn.Module):
    """A stem and two stages: every block, shortcut and kind of convolution there is."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv3x3(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 16, 2, OptionAShortcut(8, 16, 2)))
        self.layer2 = nn.Sequential(
            Bottleneck(16, 8, 2, projection(16, 32, 2)),
            Bottleneck(32, 8),
            Bottleneck(32, 8, groups=2, base_width=64, dilation=2),
        )
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        x = stem_forward(self.conv1, self.bn1, self.relu, None, x)
        x = stages_forward((self.layer1, self.layer2), x)
        return self.fc(x.mean((2, 3)))


def network(dtype=F64):
    torch.manual_seed(5)
    net = randomise(Net()).train().to(dtype)
    # Activations far from zero, so that each rank has a centre of its own for their products.
    nn.init.constant_(net.layer2[1].bn2.bias, 8.0)
    return net


def batch(dtype=F64):
    torch.manual_seed(6)
    return torch.randn(6, 3, 9, 11, dtype=F64).to(dtype), torch.randn(6, 5, dtype=F64).to(dtype)


def trained(model, x, weights, factor=1.0, backend="reference"):
    """The outputs, gradients and statistics of one step whose loss is `factor` times a weighted sum of the outputs."""
    x = x.clone().requires_grad_()
    with use_backend(backend):
        y = model(x)
    (factor * y * weights).sum().backward()
    module = model.module if isinstance(model, DistributedDataParallel) else model
    found = {"y": y.detach(), "x": x.grad / factor}
    found |= {f"grad {name}": p.grad.clone() for name, p in module.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in module.named_buffers()}


def rank_main(rank, scenario, directory):
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # conftest's, which a process of its own does not have
    warnings.filterwarnings("error", "Grad strides do not match bucket view strides")
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", f"file://{directory}/store", datetime.timedelta(seconds=hang.SECONDS), world_size=WORLD, rank=rank
    )
    torch.save(scenario(rank), directory / f"{rank}.pt")
    dist.destroy_process_group()


def both(scenario, directory):
    """What `scenario(rank)` returns in each of two processes."""
    mp.spawn(rank_main, (scenario, directory), nprocs=WORLD)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD)]
