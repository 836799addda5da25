"""Random residual blocks and networks against their own modules, by the parity rule.

    python -m benchmarks.fuzz --count 10000            # two processes on two cores: three quarters of an hour
    python -m benchmarks.fuzz --case 4711              # one of them again, row by row

Case N is always the same: a block or a small network, its numbers, images, dtype, memory format, backend, and whether
it infers, infers frozen, or takes a training step.  What it gives is held to what rounding explains of its modules run
one by one (`fused_resnet.parity`): outputs, running statistics and, in float32, gradients.  A case in which rounding
may flip a ReLU is drawn again, since a gradient then differs by more than rounding.
Exit status: 0; 1 when a case disagrees or raises, each with the command that runs it again; 2 when an argument cannot
be used.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import fused_resnet
from fused_resnet import BasicBlock, Bottleneck, OptionAShortcut, use_backend
from fused_resnet.models.cifar import CifarResNet
from fused_resnet.models.resnet import ResNet
from fused_resnet.ops import dispatch
from fused_resnet.parity import Row, compare, sampled, table

from .learning.train import unfused
from .record import environment

RUNS = 8
REDRAWS = 50
NEAR = 8  # times the RMS of rounding: nearer to zero, a ReLU's input may come to lie on the other side


@dataclasses.dataclass(frozen=True)
class Subject:
    """One case: `model` in its mode, what it reads, and how it is run."""

    model: nn.Module
    x: Tensor
    backend: str
    frozen: bool
    described: str

    @property
    def with_gradients(self) -> bool:
        return self.model.training and self.x.dtype == torch.float32


# ---- drawing ----


def _block(draw: random.Random) -> tuple[nn.Module, int, str]:
    """A block, the channels of its input, and a description."""
    kind = draw.choice((BasicBlock, Bottleneck))
    stride = draw.choice((1, 1, 2))
    planes, options = draw.choice((1, 3, 4, 8, 12, 16)), {}
    if kind is Bottleneck:
        options["dilation"] = draw.choice((1, 1, 1, 2))
        if draw.random() < 0.2:
            options |= {"groups": 2, "base_width": 64}
    channels = planes * kind.expansion
    shortcut = draw.choice(("identity", "projection", "option_a"))
    inplanes = channels if shortcut == "identity" else max(1, channels // draw.choice((1, 2, 2, 3)))
    if shortcut == "identity":
        stride, downsample = 1, None
    elif shortcut == "projection":
        conv = nn.Conv2d(inplanes, channels, 1, stride, bias=False)
        downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))
    else:
        downsample = OptionAShortcut(inplanes, channels, stride)
    block = kind(inplanes, planes, stride, downsample, **options)
    return block, inplanes, f"{kind.__name__}({inplanes}, {planes}, {stride}, {shortcut}, {options})"


def _network(draw: random.Random) -> tuple[nn.Module, int, str]:
    if draw.random() < 0.8:
        shortcut = draw.choice("AB")
        return CifarResNet(8, shortcut=shortcut), 3, f"CifarResNet(8, {shortcut})"
    kind = draw.choice((BasicBlock, Bottleneck))
    return ResNet(kind, [1, 1, 1, 1], num_classes=5), 3, f"ResNet({kind.__name__}, [1, 1, 1, 1])"


def _randomize(model: nn.Module, draw: random.Random) -> None:
    """Numbers as training leaves them, now and then far from them."""
    far = draw.random() < 0.1
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, -1.5 if far else 0.5, 1.5)
            nn.init.normal_(norm.bias, std=10 if far else 0.5)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            norm.eps = draw.choice((1e-5, 1e-5, 1e-3))
            norm.momentum = draw.choice((0.1, 0.1, None))


def drawn(seed: int) -> Subject:
    """Case number `seed`."""
    draw = random.Random(seed)
    torch.manual_seed(draw.getrandbits(31))
    is_network = draw.random() < 0.15
    model, channels, what = (_network if is_network else _block)(draw)
    _randomize(model, draw)
    training = draw.random() < 0.5 and not isinstance(model, ResNet)
    dtype = draw.choice((torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16))
    n = draw.randint(2 if training else 1, 4)
    sides = (8, 17) if is_network else (2 if training else 1, 13)
    h, w = draw.randint(*sides), draw.randint(*sides)
    if isinstance(model, ResNet):
        h, w = 33 + h, 33 + w
    x = torch.randn(n, channels, h, w) * draw.choice((1, 1, 1, 100)) + draw.choice((0, 0, 0, 5))
    if draw.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    backends = ("reference",) if training else ("auto", "reference", "onednn")[: 3 if dtype == torch.float32 else 2]
    backend = draw.choice(backends)
    frozen = not training and draw.random() < 0.4
    mode = "trains" if training else "frozen" if frozen else "infers"
    described = f"{what} {mode} on {n} x {channels} x {h} x {w}, {dtype}, backend {backend}"
    return Subject(model.to(dtype).train(training), x.to(dtype), backend, frozen, described)


# ---- running ----


def outputs(model: nn.Module, x: Tensor, gradients: bool) -> dict[str, Tensor]:
    """What `model` gives for x, its running statistics in training, and its gradients where asked for."""
    if not model.training:
        with torch.no_grad():
            return {"y": model(x)}
    x = x.detach().clone().requires_grad_(gradients)
    y = model(x)
    found = {"y": y.detach()}
    if gradients:
        weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64, device=y.device)).view_as(y).to(y.dtype)
        y.backward(weights)
        found |= {"dx": x.grad} | {f"d {name}": one.grad for name, one in model.named_parameters()}
    return found | {name: one.clone() for name, one in model.named_buffers() if "running" in name}


def rectified(model: nn.Module) -> list[Tensor]:
    """A list that fills with the inputs of `model`'s ReLUs as it runs."""
    seen: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().double()))
    return seen


def _near_a_kink(gold: list[Tensor], runs: list[list[Tensor]]) -> bool:
    for i, exact in enumerate(gold):
        rounding = torch.stack([run[i] - exact for run in runs]).square().mean().sqrt()
        if (exact.abs() < NEAR * rounding).any():
            return True
    return False


@torch.no_grad()
def _round_filters(module: nn.Module) -> None:
    """As folding a norm into a filter does, once, where roundings are disturbed; elsewhere they stay as they are."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.data = conv.weight * 1.0


def rows_of(subject: Subject) -> list[Row] | None:
    """Each output's verdict; None where rounding may flip a ReLU, and there are gradients."""
    judge = unfused(copy.deepcopy(subject.model))

    def step(dtype: torch.dtype, seen: list[list[Tensor]]) -> dict[str, Tensor]:
        module = copy.deepcopy(judge).to(dtype)
        if subject.frozen:
            _round_filters(module)
        seen.append(rectified(module))
        return outputs(module, subject.x.to(dtype), subject.with_gradients)

    exact: list[list[Tensor]] = []
    disturbed: list[list[Tensor]] = []
    with use_backend("auto"):
        gold = step(torch.float64, exact)
        runs = list(sampled(lambda: step(subject.x.dtype, disturbed), RUNS))
    if subject.with_gradients and _near_a_kink(exact[0], disturbed):
        return None
    with use_backend(subject.backend):
        model = fused_resnet.freeze(subject.model) if subject.frozen else subject.model
        ours = outputs(model, subject.x, subject.with_gradients)
    return [compare(name, ours[name], one, [run[name] for run in runs]) for name, one in gold.items()]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`share`: the worst of a case over its limit; `problem`: what raised or disagreed; `redraws` before it."""

    case: int
    share: float
    redraws: int
    problem: str | None


def check(case: int) -> Outcome:
    """Run case number `case`."""
    for redraws in range(REDRAWS):
        subject = drawn(case + redraws * 10**9)
        try:
            rows = rows_of(subject)
        except Exception as error:  # whatever it is, it is a finding, and the other cases go on
            return Outcome(case, float("inf"), redraws, f"{subject.described}: {type(error).__name__}: {error}")
        if rows is not None:
            break
    else:
        return Outcome(case, float("inf"), redraws, f"no draw of {REDRAWS} kept its ReLUs from their kinks")
    wrong = [row for row in rows if not row.passed]
    problem = f"{subject.described}\n{table(wrong)}" if wrong else None
    return Outcome(case, max(row.share for row in rows), redraws, problem)


# ---- the command ----


def _alone(threads: int) -> None:
    torch.set_num_threads(threads)
    # the maps are small, and are to be fused all the same
    dispatch.SMALL_MAP = 0


def outcomes(cases: Sequence[int], processes: int) -> Iterator[Outcome]:
    """Each case's outcome, as it comes."""
    if processes == 1:
        _alone(torch.get_num_threads())
        yield from map(check, cases)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _alone, (1,)) as pool:
        yield from pool.imap_unordered(check, cases, chunksize=8)


def _show(case: int) -> int:
    _alone(torch.get_num_threads())
    outcome = check(case)
    subject = drawn(case + outcome.redraws * 10**9)
    print(subject.described)
    print(outcome.problem or table(rows_of(subject)))
    return 1 if outcome.problem else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="how many cases (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--case", type=int, help="run this one alone, and show its rows")
    parser.add_argument("--processes", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    options = parser.parse_args(argv)
    if options.count < 1 or options.processes < 1 or min(options.first, options.case or 0) < 0:
        parser.error("--count and --processes must be at least 1, --first and --case at least 0")
    return options


def main(argv: Sequence[str] | None = None, progress: Callable[[str], object] = print) -> int:
    """The command; returns its exit status."""
    options = _arguments(argv)
    if options.case is not None:
        return _show(options.case)
    started, found = time.perf_counter(), []
    for outcome in outcomes(range(options.first, options.first + options.count), options.processes):
        found.append(outcome)
        if outcome.problem:
            progress(
                f"case {outcome.case}: {outcome.problem}\n  again: python -m benchmarks.fuzz --case {outcome.case}"
            )
        if len(found) % 500 == 0:
            progress(f"{len(found)} of {options.count} cases, {time.perf_counter() - started:.0f} s")
    wrong = [outcome for outcome in found if outcome.problem]
    worst = max((outcome for outcome in found if not outcome.problem), key=lambda one: one.share, default=None)
    summary = (
        f"{len(found)} cases, {len(wrong)} disagree; {sum(one.redraws for one in found)} were drawn again near a ReLU's"
        f" kink; the others at most at {worst.share if worst else float('nan'):.2f} of the limit"
        f"{f' (case {worst.case})' if worst else ''}"
    )
    progress(summary)
    if options.json:
        document = {
            "schema": 1,
            "benchmark": "fuzz",
            "environment": environment.environment(torch.device("cpu")),
            "command": f"python -m benchmarks.fuzz --first {options.first} --count {options.count}",
            "summary": summary,
            "disagreements": [dataclasses.asdict(one) | {"share": str(one.share)} for one in wrong],
            "shares": sorted(round(one.share, 4) for one in found if not one.problem),
        }
        options.json.write_text(json.dumps(document) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
