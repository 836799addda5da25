"""Candidates of a convolution, each judged by the parity rule and timed through the public op."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import partial

import torch

from .. import backends, models, parity
from ..shapes import ConvShape
from ..tuning.candidates import candidates
from ..tuning.config import Choice
from ..tuning.tables import forced

OP = "conv_scale_shift_act"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "tfloat32": torch.float32}
_JUDGED_IMAGES = 2
_JUDGED_RUNS = 4  # of the reference, with its roundings disturbed: a map has elements enough to tell their spread from
_TF32_ROUNDING = 2.0**-12  # RMS, of an operand, and a little more


def refusal() -> str | None:
    """Why nothing can be tuned here, or None."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: the interpreter's times say nothing; unset it"
    if not torch.cuda.is_available():
        return f"tuning times kernels on a CUDA GPU, and torch {torch.__version__} sees none; nothing was written"
    return None


def shapes_of(model: str, batch: int, size: int) -> list[ConvShape]:
    """The distinct convolutions of a model on `batch` images of `size` x `size`, found on the meta device."""
    with torch.device("meta"):
        network = getattr(models, model)().eval()
        images = torch.empty(batch, 3, size, size)
    found: dict[ConvShape, None] = {}

    def record(module, inputs):
        conv = (inputs[0], module.weight, module.stride, module.padding, module.dilation, module.groups)
        found[ConvShape.of(*conv)] = None

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(record)
    with torch.no_grad():
        network(images)
    return list(found)


def _arguments(shape: ConvShape, dtype: torch.dtype, device: str) -> tuple:
    """The public op's arguments at `shape`, random: x, the weight, four vectors, and the rest."""
    options = {"dtype": dtype, "device": device}
    x = torch.randn(shape.n, shape.c, shape.h, shape.w, **options).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(shape.k, shape.c // shape.groups, shape.r, shape.s, **options) * shape.gemm_k**-0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    bn = [torch.rand(shape.k, device=device) + 0.5 for _ in range(4)]
    geometry = [list(shape.stride), list(shape.padding), list(shape.dilation), shape.groups]
    return x, weight, *bn, 1e-5, None, *geometry, 1, "relu"


def call_at(shape: ConvShape, dtype: torch.dtype, device: str) -> Callable[[], torch.Tensor]:
    """A call of the public op at `shape` on random data, as a function without arguments."""
    return partial(torch.ops.fused_resnet.conv_scale_shift_act, *_arguments(shape, dtype, device))


def _judge(dtype: str, x: torch.Tensor, weight: torch.Tensor, *rest) -> Callable[[torch.Tensor], str | None]:
    """A function that says what is wrong with an output, or None: the parity rule, on the first images."""
    reference = backends.load("reference").conv_scale_shift_act
    x = x[:_JUDGED_IMAGES]

    def disturbed() -> torch.Tensor:
        if dtype != "tfloat32":
            return reference(x, weight, *rest)
        read = (operand * (1 + _TF32_ROUNDING * torch.randn_like(operand)) for operand in (x, weight))
        return reference(*read, *rest)

    runs = list(parity.sampled(disturbed, _JUDGED_RUNS))
    wide = [value.double() if isinstance(value, torch.Tensor) else value for value in (x, weight, *rest)]
    gold = reference(*wide)

    def wrong(output: torch.Tensor) -> str | None:
        row = parity.compare("y", output[:_JUDGED_IMAGES], gold, runs)
        return None if row.passed else f"is {row.share:.3g} times as far from float64 as rounding explains"

    return wrong


def _time(call, choice: Choice, wrong: Callable[[torch.Tensor], str | None]) -> float | str:
    """Median microseconds of `call` under `choice`, or why it cannot be used."""
    do_bench = importlib.import_module("triton.testing").do_bench
    with forced(choice):
        try:
            found = wrong(call())
            return 1e3 * do_bench(call, return_mode="median") if found is None else found
        except Exception as failure:  # a tile that does not compile or launch is no candidate
            return f"{type(failure).__name__}: {failure}".splitlines()[0]


def tune(shape: ConvShape, arch: int, dtype: str, device: str = "cuda") -> tuple[Choice, float]:
    """The fastest choice for `shape` and its median microseconds; prints each that cannot be used."""
    arguments = _arguments(shape, DTYPES[dtype], device)
    wrong = _judge(dtype, *arguments)
    call = partial(torch.ops.fused_resnet.conv_scale_shift_act, *arguments)
    times: dict[Choice, float] = {}
    for choice in candidates(arch, dtype, shape):
        measured = _time(call, choice, wrong)
        if isinstance(measured, float):
            times[choice] = measured
        else:
            print(f"  not {choice.algorithm} {choice.tile}: {measured}")
    best = min(times, key=times.get)
    return best, times[best]
