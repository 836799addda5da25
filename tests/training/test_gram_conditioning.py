"""A 1x1 convolution and its norm from a Gram matrix, where channels are correlated and filters nearly orthogonal to
what they share: never worse than four times what torch's own modules err by, forward and backward."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fused_resnet
from fused_resnet.autograd import shortcut
from fused_resnet.autograd import tail as pointwise_tail
from fused_resnet.autograd.norm import Affine
from fused_resnet.backends import cuda, gram_check, reference
from tests.support import emulated
from tests.support.emulated_extension import EmulatedExtension, install
from tests.support.twins import ABSENT, torchvision

needs_torchvision = pytest.mark.skipif(torchvision is None, reason=ABSENT)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
# what is allowed beside torch's error: of a tensor that is rounded to the dtype, and of one that is float32
ROUNDING = {F32: 2.0**-22, F16: 2.0**-10, BF16: 2.0**-7}
EPS = 1e-5


@dataclass(frozen=True)
class Draw:
    """Pixels of `channels` that are `factors` shared ones, mixed, and noise `spread` times as large, about a mean of
    `offset`; a third of the filters is orthogonal to the mixture, a third nearly so, the last of all is zero."""

    seed: int
    spread: float
    dtype: torch.dtype = F32
    channels: int = 16
    filters: int = 24
    size: tuple[int, int, int] = (3, 7, 8)
    factors: int = 1
    offset: float = 0.0
    stride: int = 1

    def __str__(self) -> str:
        return f"{self.seed}-spread{self.spread:g}-{str(self.dtype)[6:]}"


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    grad: Tensor

    def double(self) -> Problem:
        return Problem(*(tensor.double() for tensor in self))


def drawn(draw: Draw) -> Problem:
    generator = torch.Generator().manual_seed(draw.seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    n, h, w = draw.size
    mixture = normal(draw.factors, draw.channels)
    x = normal(n, h, w, draw.factors) @ mixture + draw.spread * normal(n, h, w, draw.channels) + draw.offset
    filters, third = normal(draw.filters, draw.channels) / draw.channels**0.5, draw.filters // 3
    shared = filters @ torch.linalg.pinv(mixture) @ mixture
    filters[:third] -= shared[:third]
    filters[third : 2 * third] -= (1 - 3 * draw.spread) * shared[third : 2 * third]
    filters[-1] = 0
    p, q = (-(-extent // draw.stride) for extent in (h, w))
    gamma, beta, grad = normal(draw.filters).abs() + 0.2, normal(draw.filters), normal(n, draw.filters, p, q)
    nhwc = torch.channels_last
    x, grad = (tensor.to(draw.dtype).contiguous(memory_format=nhwc) for tensor in (x.permute(0, 3, 1, 2), grad))
    return Problem(x, filters.to(draw.dtype)[:, :, None, None], gamma.float(), beta.float(), grad)


def as_modules(problem: Problem, stride: int) -> dict[str, Tensor]:
    x, weight, gamma, beta = (tensor.clone().requires_grad_() for tensor in problem[:4])
    var = torch.ones_like(gamma).detach()
    y = F.batch_norm(F.conv2d(x, weight, None, stride), torch.zeros_like(var), var, gamma, beta, True, 1.0, EPS)
    y.backward(problem.grad)
    dx = x.grad[:, :, ::stride, ::stride]
    return {"y": y.detach(), "var": var, "dx": dx, "dW": weight.grad, "dgamma": gamma.grad}


def from_gram(backend, problem: Problem, stride: int) -> dict[str, Tensor]:
    """The autograd's own orchestration, over the functions of a backend."""
    x, weight, gamma, beta, grad = problem
    projection = shortcut.Projection(weight, Affine(gamma, beta, None, None, EPS), stride)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for module in (pointwise_tail, shortcut):
            patch.setattr(module, "raw", backend)
        y, tail = shortcut.project(x, projection)
        dx, found = shortcut.projection_backward(tail, grad, None, x, projection, True)
    count = grad.numel() // grad.shape[1]
    var = tail.norm.var * count / (count - 1)
    return {"y": y, "var": var, "dx": dx, "dW": found.weight, "dgamma": found.bn_weight}


def assert_no_worse(ours: dict[str, Tensor], theirs: dict[str, Tensor], gold: dict[str, Tensor], dtype) -> None:
    for name, exact in gold.items():

        def error(found: Tensor, exact: Tensor = exact) -> float:
            return ((found.double() - exact).norm() / exact.norm()).item()

        floor = ROUNDING[dtype] if name in ("y", "dx") else ROUNDING[F32]
        own, allowed = error(ours[name]), 4 * error(theirs[name]) + floor
        assert own <= allowed, f"{name} errs by {own:.1e}, torch by {error(theirs[name]):.1e}; allowed is {allowed:.1e}"


def check(backend, draw: Draw) -> None:
    problem = drawn(draw)
    gold, theirs = as_modules(problem.double(), draw.stride), as_modules(problem, draw.stride)
    assert_no_worse(from_gram(backend, problem, draw.stride), theirs, gold, draw.dtype)


def each(draws):
    return pytest.mark.parametrize("draw", draws, ids=str)


# Every order of magnitude of the spread in every dtype; one and several factors, means far and near, few pixels.
DRAWS = [
    Draw(0, 1.0),
    Draw(1, 0.3, factors=3),
    Draw(2, 0.1, offset=1.0),
    Draw(3, 0.03, size=(1, 3, 4)),
    Draw(4, 0.01, offset=3.0, stride=2),
    Draw(5, 0.003, factors=2),
    Draw(6, 1e-3, filters=40),
    Draw(7, 1e-4, factors=3, offset=20.0),
    Draw(8, 1.0, F16),
    Draw(9, 0.1, F16, offset=1.0),
    Draw(10, 0.01, F16, factors=3, stride=2),
    Draw(11, 1e-3, F16, offset=5.0),
    Draw(12, 1.0, BF16, offset=3.0),
    Draw(13, 0.03, BF16, factors=2),
    Draw(14, 1e-3, BF16),
]


@each([*DRAWS, Draw(15, 0.02, size=(16, 16, 16), channels=48, filters=96, factors=4)])
def test_reference(draw):
    check(reference, draw)


@each([draw for draw in DRAWS if draw.seed in (2, 4, 7, 10)])
def test_triton(draw):
    pytest.importorskip("triton", reason="triton is not installed")
    from fused_resnet.backends import triton

    check(triton, draw)


# ---- the block, as the report of it had it ----


def conditioned(block: type[nn.Module], spread: float) -> tuple[nn.Module, Tensor]:
    """A bottleneck whose projection is orthogonal to what the channels of its input share, and that input."""
    torch.manual_seed(0)
    module = block(16, 4, 1, nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))).train()
    shared = torch.randn(16)
    x = torch.randn(4, 1, 6, 6) * shared.view(1, -1, 1, 1) + spread * torch.randn(4, 16, 6, 6)
    weight = module.downsample[0].weight
    with torch.no_grad():
        along = weight[:, :, 0, 0] @ shared / (shared @ shared)
        weight -= along[:, None, None, None] * shared.view(1, -1, 1, 1)
    return module, x


def block_step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    y = module(x)
    (y * torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)).sum().backward()
    conv, norm = module.downsample
    return {"y": y.detach(), "dW": conv.weight.grad, "var": norm.running_var}


@needs_torchvision
@pytest.mark.parametrize(
    ("backend", "spread"), [("reference", 0.1), ("reference", 0.01), ("reference", 0.001), ("triton", 0.01)]
)
def test_a_projection_orthogonal_to_what_its_channels_share(backend, spread):
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    theirs, x = conditioned(torchvision.models.resnet.Bottleneck, spread)
    ours = conditioned(fused_resnet.Bottleneck, spread)[0]
    ours.load_state_dict(theirs.state_dict())
    gold = block_step(copy.deepcopy(theirs).double(), x.double())
    with fused_resnet.use_backend(backend):
        found = block_step(ours, x)
    assert_no_worse(found, block_step(theirs, x), gold, F32)


# ---- the check ----


@contextlib.contextmanager
def flags():
    """Those that were raised or not, in their order."""
    seen, needs = [], gram_check.needs_float64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram_check, "needs_float64", lambda *given: seen.append(needs(*given)) or seen[-1])
        yield seen


def sums_of(problem: Problem) -> tuple[Tensor, Tensor]:
    _, total, gram = reference.gram(problem.x, None, None, None, 1)
    return total, gram


def is_flagged(problem: Problem) -> bool:
    count = problem.x.numel() // problem.x.shape[1]
    return bool(gram_check.needs_float64(*sums_of(problem), problem.weight, count, problem.x.dtype))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_the_flag_is_raised_where_a_variance_cancels_and_not_by_ordinary_filters(dtype):
    ordinary = drawn(Draw(3, 1.0, dtype, channels=64, filters=256))
    assert not is_flagged(ordinary), "every 1x1 convolution would be summed twice"
    one = ordinary.weight.clone()
    one[17] = drawn(Draw(3, 1e-2, dtype, channels=64, filters=256)).weight[17]
    assert is_flagged(drawn(Draw(3, 1e-2, dtype)))
    shared = ordinary._replace(x=drawn(Draw(3, 1e-2, dtype, channels=64, filters=256)).x)
    assert not is_flagged(shared._replace(weight=torch.zeros_like(one))), "filters of zeros have nothing that cancels"
    assert is_flagged(shared._replace(weight=one)), "one filter is enough"
    count = ordinary.x.numel() // 64
    nan = torch.full_like(sums_of(ordinary)[1], torch.nan)
    assert not gram_check.needs_float64(nan[0], nan, ordinary.weight, count, dtype)


@pytest.mark.parametrize("raised", [False, True])
def test_what_the_flag_asks_for_is_what_comes_out(raised):
    problem = drawn(Draw(5, 0.003 if raised else 1.0))
    total, gram = sums_of(problem)
    again = torch.cat((gram + 1, total[None] + 1))[None] / 2
    checked = gram_check.checked(total, gram, problem.weight, 168, F32, lambda flag: torch.cat((again, again)))
    assert all(torch.equal(found, sums + raised) for found, sums in zip(checked, (total, gram), strict=True))


class NothingWaits(TorchDispatchMode):
    """Refuses what reads a tensor's number on the host: `.item()`, `bool(...)`, and shapes that depend on numbers."""

    REFUSED = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.REFUSED), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(monkeypatch):
    launch = pytest.importorskip("fused_resnet.backends.triton.launch", reason="triton is not installed")
    from fused_resnet.backends import triton

    launched = []

    def run(plan, tensors) -> None:
        launched.append(plan.kernel)
        tensors["y_ptr"].fill_(1.0)

    monkeypatch.setattr(launch, "run", run)
    x, weight, *_ = drawn(Draw(5, 0.003))
    with NothingWaits():
        triton.gram(x, None, None, weight, 1)
        with pytest.raises(AssertionError, match="waits for the device"):
            bool(weight[0, 0])
    assert launched == ["conv_gram", "conv_gram_exact"], "the exact kernel is launched whatever the flag says"
    triton.gram(x, None, None, None, 1)
    assert launched[2:] == ["conv_gram"], "without filters there is nothing to check"


@pytest.mark.parametrize(("spread", "raised"), [(1.0, 0), (0.003, 1)])
def test_triton_sums_again_where_the_flag_is_raised(spread, raised):
    pytest.importorskip("triton", reason="triton is not installed")
    from fused_resnet.backends import triton

    problem = drawn(Draw(5, spread, channels=40, stride=1))
    with flags() as seen:
        center, total, gram = triton.gram(problem.x, None, None, problem.weight, 1)
    assert seen[0].tolist() == [raised]
    a = (problem.x.permute(0, 2, 3, 1).reshape(-1, 40) - center).double()
    tolerance = {"rtol": 1e-13 if raised else 1e-5, "atol": 1e-10 if raised else 1e-4}
    torch.testing.assert_close(total, a.sum(0), **tolerance)
    torch.testing.assert_close(gram, a.T @ a, **tolerance)


# ---- the CUDA kernels, emulated ----


@emulated.needs_compiler
@each([Draw(8, 1.0, F16), Draw(10, 0.01, F16, factors=3, stride=2), Draw(13, 0.003, BF16, factors=2)])
def test_cuda(draw, monkeypatch):
    guards = install(monkeypatch, EmulatedExtension(seed=1, blocks=3))
    with flags() as seen:
        check(cuda, draw)
    assert seen[0].tolist() == [int(draw.spread < 1)]
    guards.check()


@emulated.needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
def test_cuda_sums_again_to_float64_and_to_equal_bits(stride, monkeypatch):
    problem = drawn(Draw(5, 0.003, F16, channels=72, offset=20.0))
    monkeypatch.setitem(gram_check.LEAST_KEPT, F16, 2.0)
    for extension in (EmulatedExtension(), EmulatedExtension(seed=3, workers=2)):
        guards = install(monkeypatch, extension)
        center, total, gram = cuda.gram(problem.x, None, None, problem.weight, stride)
        guards.check()
        a = (problem.x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, 72).float() - center).half().double()
        torch.testing.assert_close(total, a.sum(0), rtol=1e-13, atol=1e-10)
        torch.testing.assert_close(gram, a.T @ a, rtol=1e-13, atol=1e-10)
