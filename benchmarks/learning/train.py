"""Training a network from a seed, on one process or under torchrun, and what is written down on the way."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

import fused_resnet

from .data import Data, augmented


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: SGD with momentum and weight decay, a linear warm-up, then a cosine down to zero."""

    epochs: int
    batch: int
    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 1e-4
    warm_up: float = 0.1
    amp: torch.dtype | None = None
    backend: str = "reference"
    workers: int = 0


@dataclass
class Curve:
    """What a training run has shown, an entry per epoch; errors and accuracies are fractions."""

    loss: list[float] = field(default_factory=list)
    training_error: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    gradients: list[dict[str, float]] = field(default_factory=list)


def world() -> tuple[int, int]:
    """This process's rank, and how many processes train together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Joins the group that torchrun made, gloo on a CPU and NCCL on GPUs; yields this process's device."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def summed(values: Tensor) -> Tensor:
    """`values` added up over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def unfused(model: nn.Module) -> nn.Module:
    """The same network, sharing its parameters, with every convolution, norm and ReLU called by itself."""
    return torch.fx.symbolic_trace(model)


def rate_at(progress: float, schedule: Schedule) -> float:
    """The learning rate after the fraction `progress` of all steps."""
    if progress < schedule.warm_up:
        return schedule.rate * progress / schedule.warm_up
    done = (progress - schedule.warm_up) / (1 - schedule.warm_up)
    return schedule.rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())


def _loader(data: Data, schedule: Schedule, seed: int) -> DataLoader:
    rank, size = world()
    if size > 1:
        sampler = DistributedSampler(data.train, size, rank, shuffle=True, seed=seed, drop_last=True)
    else:
        sampler = RandomSampler(data.train, generator=torch.Generator().manual_seed(seed))
    batch = max(2, schedule.batch // size)
    if len(data.train) // size < batch:
        raise ValueError(f"--batch {schedule.batch}: the training set has only {len(data.train)} images")
    return DataLoader(data.train, batch, sampler=sampler, drop_last=True, num_workers=schedule.workers)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The norm of each convolution weight's gradient, first layer first."""
    return {
        name: module.weight.grad.norm().item()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, device: torch.device, batch: int, workers: int = 0) -> float:
    """The fraction of the test set that is classified right, in eval mode, every process taking its share."""
    rank, size = world()
    share = torch.utils.data.Subset(data.test, range(rank, len(data.test), size))
    model.eval()
    counted = torch.zeros(2, dtype=torch.float64, device=device)
    for images, labels in DataLoader(share, batch, num_workers=workers):
        right = model(images.to(device)).argmax(1) == labels.to(device)
        counted += torch.stack([right.sum(), torch.tensor(len(labels), device=device)])
    model.train()
    right, seen = summed(counted).tolist()
    return right / seen


def _epoch(
    network: nn.Module,
    batches: DataLoader,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step_inputs: tuple[Data, Schedule, torch.device, torch.Generator],
    set_rate: Callable[[int], None],
    watch: Callable[[], None],
) -> Tensor:
    """One pass over the training set; the sums of the loss and of wrong answers, and the images seen."""
    data, schedule, device, draw = step_inputs
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for index, (images, labels) in enumerate(batches):
        set_rate(index)
        images = augmented(images, data.shift, data.flip, draw).contiguous(memory_format=torch.channels_last)
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, schedule.amp, enabled=schedule.amp is not None):
            logits = network(images)
            loss = nn.functional.cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        watch()
        scaler.step(optimizer)
        scaler.update()
        wrong = (logits.detach().argmax(1) != labels).sum()
        seen = torch.tensor(len(labels), device=device)
        totals += torch.stack([loss.detach().double() * len(labels), wrong.double(), seen.double()])
    return totals


def train(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    device: torch.device,
    seed: int,
    progress: Callable[[int], None] = lambda epoch: None,
    watch_gradients: bool = False,
) -> Curve:
    """Train `model` in place and return its curve; a seed fixes the order of the images and their augmentation.

    Args:
        model: its initial weights are the caller's; with the same seed two models see the same batches.
        progress: called with the number of epochs done.
        watch_gradients: also note the norm of every convolution's weight gradient, the mean over each epoch's steps.
    """
    model = model.to(device=device, memory_format=torch.channels_last).train()
    network = model
    if world()[1] > 1:
        network = nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=schedule.momentum, weight_decay=schedule.decay, nesterov=True
    )
    scaler = torch.amp.GradScaler(device.type, enabled=schedule.amp is torch.float16)
    batches = _loader(data, schedule, seed)
    draw = torch.Generator().manual_seed(seed + 1000 * (world()[0] + 1))
    curve = Curve()
    with fused_resnet.use_backend(schedule.backend):
        for epoch in range(schedule.epochs):
            if isinstance(batches.sampler, DistributedSampler):
                batches.sampler.set_epoch(epoch)
            seen: list[dict[str, float]] = []

            def set_rate(index: int, epoch: int = epoch) -> None:
                done = (epoch + (index + 1) / len(batches)) / schedule.epochs
                optimizer.param_groups[0]["lr"] = rate_at(done, schedule)

            def watch(seen: list[dict[str, float]] = seen) -> None:
                if watch_gradients:
                    seen.append(gradient_norms(model))

            inputs = (data, schedule, device, draw)
            loss, wrong, count = summed(_epoch(network, batches, optimizer, scaler, inputs, set_rate, watch)).tolist()
            curve.loss.append(loss / count)
            curve.training_error.append(wrong / count)
            curve.accuracy.append(accuracy(model, data, device, schedule.batch, schedule.workers))
            if seen:
                curve.gradients.append({name: sum(step[name] for step in seen) / len(seen) for name in seen[0]})
            progress(epoch + 1)
    return curve
