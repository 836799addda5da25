"""The options of the commands that train, and what they have in common when they report."""

import argparse

import torch

from ..record import environment
from . import data
from .train import Schedule

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_training_arguments(arguments: argparse.ArgumentParser, epochs: int, batch: int, name: str) -> None:
    """The options that the commands which train share; files are called `name`."""
    add = arguments.add_argument
    add("--data", help="a CIFAR-10 folder (python version) or train/<class>/ and val/<class>/; default: the digits")
    add("--size", type=int, default=224, help="side that an image folder's pictures are resized to (default: 224)")
    add("--epochs", type=int, default=epochs, help=f"passes over the training set (default: {epochs})")
    add("--batch", type=int, default=batch, help=f"images per step, over all processes (default: {batch})")
    add("--rate", type=float, default=0.1, help="highest learning rate (default: 0.1)")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="float32, or autocast's dtype (default: float32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--backend", default="reference", help="for fused_resnet's ops, or auto (default: reference)")
    add("--workers", type=int, default=0, help="processes that load images (default: 0)")
    add("--out", default="benchmarks/results/latest", help=f"folder for {name}.json and {name}.png")
    add("--json", help="write the JSON here instead")
    add("--quiet", action="store_true", help="no progress bar")


def training_setup(options: argparse.Namespace) -> tuple[torch.device, data.Data, Schedule]:
    """Device, data and schedule; raises ValueError or ImportError where an option cannot be used."""
    limits = {"epochs": 1, "batch": 2, "size": 8, "workers": 0}
    for name, smallest in limits.items():
        if getattr(options, name) < smallest:
            raise ValueError(f"--{name} {getattr(options, name)}: expected at least {smallest}")
    if not options.rate > 0:
        raise ValueError(f"--rate {options.rate}: expected more than 0")
    device = environment.resolve_device(options.device)
    schedule = Schedule(
        options.epochs,
        options.batch,
        options.rate,
        amp=DTYPES[options.dtype],
        backend=options.backend,
        workers=options.workers,
    )
    return device, data.load(options.data, options.size), schedule
