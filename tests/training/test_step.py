"""Training through the fused Functions: torch's gradients and running statistics, and no change by a failure."""

import copy

import pytest
import torch
from torch import nn

import fused_resnet
from fused_resnet import BasicBlock, Bottleneck, use_backend
from fused_resnet.blocks import trainable
from fused_resnet.blocks.stages import stages_forward
from fused_resnet.ops import dispatch
from tests.models.test_blocks import BlockCase
from tests.support.parity import assert_as_near

F64 = torch.float64
TRAINED = [
    BlockCase("basic identity", BasicBlock, 8, 8),
    BlockCase("basic projection stride 2", BasicBlock, 8, 16, 2, "projection"),
    BlockCase("basic option A stride 2", BasicBlock, 8, 16, 2, "option_a"),
    BlockCase("bottleneck identity", Bottleneck, 16, 4),
    BlockCase("bottleneck projection", Bottleneck, 8, 4, 1, "projection"),
    BlockCase("bottleneck projection stride 2", Bottleneck, 16, 8, 2, "projection"),
    BlockCase("bottleneck option A stride 2", Bottleneck, 16, 8, 2, "option_a"),
]
by_id = pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.id)


def step(block, x, grad=None, backend="reference"):
    """One forward and backward; the output and every gradient by name."""
    x = x.detach().clone().requires_grad_()
    with use_backend(backend):
        y = block(x)
    y.backward(torch.ones_like(y) if grad is None else grad)
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in block.named_parameters() if p.grad is not None}}


def amp_step(block, x, grad=None, backend="reference"):
    """The same of a copy of the block, under autocast to bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return step(copy.deepcopy(block), x, grad, backend)


def functions(y):
    """How many fused Functions lie behind y."""
    seen, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return sum("ResidualFunction" in node.name() for node in seen)


def fused_path(block, x):
    with dispatch.recording() as decisions, use_backend("reference"):
        block(x)
    return decisions[0].unfused_reason


def fresh(case, dtype=F64, training=True):
    inputs = case.inputs()
    return inputs["block"].to(dtype).train(training), inputs["x"].to(dtype)


@by_id
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_equal_torchs_in_float64(case, training):
    block, x = fresh(case, training=training)
    twin = copy.deepcopy(block)
    assert training is False or fused_path(copy.deepcopy(block), x) is None
    grad = torch.randn_like(block(x).detach())
    block.load_state_dict(twin.state_dict())
    ours, theirs = step(block, x, grad), step(twin, x, grad, "auto")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for name, expected in twin.state_dict().items():
        torch.testing.assert_close(block.state_dict()[name], expected, rtol=1e-12, atol=1e-12)


@by_id
def test_gradcheck(case):
    small = {"size": (2, 3, 2), "inplanes": case.inplanes // 4, "planes": max(1, case.planes // 4)}
    block, x = fresh(BlockCase(**{**vars(case), **small}))

    def run(x, *parameters):
        with use_backend("reference"):
            return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    names, parameters = zip(*block.named_parameters(), strict=True)
    # away from the ReLU's kinks, or the difference quotient is meaningless
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters), eps=1e-7, atol=1e-5, nondet_tol=0.0)


WIDER = [
    BlockCase("basic identity", BasicBlock, 16, 16, size=(4, 14, 14)),
    BlockCase("bottleneck identity", Bottleneck, 64, 16, size=(4, 14, 14)),
    BlockCase("bottleneck projection stride 2", Bottleneck, 32, 16, 2, "projection", size=(4, 14, 14)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", WIDER, ids=lambda case: case.id)
def test_gradients_are_as_near_to_float64_as_rounding_explains(case, dtype):
    block, _ = fresh(case, dtype)
    x = torch.randn(4, case.inplanes, 14, 14).relu().to(dtype)
    grad = torch.randn_like(copy.deepcopy(block)(x).detach())
    exact = step(copy.deepcopy(block).double(), x.double(), grad.double(), "auto")
    ours = step(copy.deepcopy(block), x, grad)
    assert_as_near(ours, lambda: step(copy.deepcopy(block), x, grad, "auto"), exact, dtype == torch.bfloat16)


@pytest.mark.parametrize("case", [TRAINED[2], TRAINED[3], TRAINED[5]], ids=lambda case: case.id)
def test_triton_trains_a_block(case):
    """Through the interpreter where there is no GPU; against float64, beside torch's own float32."""
    block, x = fresh(case, torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    block, x = block.to(device), x.to(device)
    grad = torch.randn_like(copy.deepcopy(block)(x).detach())
    exact = step(copy.deepcopy(block).double(), x.double(), grad.double(), "auto")
    ours = step(copy.deepcopy(block), x, grad, "triton")
    assert_as_near(ours, lambda: step(copy.deepcopy(block), x, grad, "auto"), exact)


def test_running_statistics_of_16_bits_are_rounded_once():
    norm, mean, var = nn.BatchNorm2d(64).half(), torch.randn(64), torch.rand(64)
    norm.running_mean.normal_()
    expected = [0.9 * norm.running_mean.float() + 0.1 * mean, 0.9 * norm.running_var.float() + 0.1 * var * (80 / 79)]
    trainable._update(norm, mean, var, None, (2, 64, 5, 8))
    for running, exact in zip((norm.running_mean, norm.running_var), expected):
        assert ((running.float() - exact).abs() <= 0.5005 * torch.finfo(torch.float16).eps * exact.abs()).all()


def test_running_statistics_over_ten_steps():
    for momentum in (0.1, None):
        torch.manual_seed(1)
        model = fused_resnet.cifar_resnet20()
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = momentum
        twin = copy.deepcopy(model)
        for _ in range(10):
            x = torch.randn(4, 3, 8, 8)
            with torch.no_grad():
                with use_backend("reference"):
                    model(x)
                twin(x)
        for name, expected in twin.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-4, atol=1e-5)


def test_the_stem_and_a_whole_network():
    torch.manual_seed(2)
    model = fused_resnet.resnet18(num_classes=5).double().train()
    twin = copy.deepcopy(model)
    x, target = torch.randn(2, 3, 65, 49, dtype=F64), torch.tensor([1, 3])
    with dispatch.recording() as decisions, use_backend("reference"):
        loss = nn.functional.cross_entropy(model(x), target)
    assert all(d.unfused_reason is None for d in decisions if d.module is not None and d.module is not model.avgpool)
    loss.backward()
    nn.functional.cross_entropy(twin(x), target).backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


CHAINS = {
    "bottleneck": [
        [BlockCase("", Bottleneck, 8, 4, 1, "projection"), BlockCase("", Bottleneck, 16, 4)],
        [BlockCase("", Bottleneck, 16, 8, 2, "projection"), BlockCase("", Bottleneck, 32, 8)],
    ],
    "basic": [
        [BlockCase("", BasicBlock, 8, 8), BlockCase("", BasicBlock, 8, 8)],
        [BlockCase("", BasicBlock, 8, 16, 2, "option_a"), BlockCase("", BasicBlock, 16, 16)],
        [BlockCase("", BasicBlock, 16, 24, 2, "projection"), BlockCase("", BasicBlock, 24, 24)],
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_blocks_hands_its_gradient_down_masked(name):
    """One Function for all stages, with torch's gradients; a stage with a hook is one that is called."""
    stages = nn.Sequential(*(nn.Sequential(*(case.module() for case in stage)) for stage in CHAINS[name]))
    stages = stages.double().train()
    twin, x = copy.deepcopy(stages), torch.randn(2, 8, 9, 11, dtype=F64)
    grad = torch.randn_like(copy.deepcopy(stages)(x).detach())
    leaf = x.clone().requires_grad_()
    with use_backend("reference"):
        y = stages_forward(stages, leaf)
    assert functions(y) == 1
    y.backward(grad)
    theirs = step(twin, x, grad, "auto")
    ours = {"y": y.detach(), "x": leaf.grad, **{name: p.grad for name, p in stages.named_parameters()}}
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    stages[0].register_forward_hook(lambda *_: None)
    with use_backend("reference"):
        apart = functions(stages_forward(stages, leaf))
    assert apart == 1 + len(stages[0]), "the blocks of a stage that must be called are Functions of their own"


def test_a_hook_between_two_blocks_sees_what_it_would_see_in_torchs():
    stage = nn.Sequential(*(BlockCase("", Bottleneck, 16, 4).module() for _ in range(3))).train()
    stage[1].register_forward_hook(lambda *_: None)
    with use_backend("reference"):
        assert functions(stages_forward([stage], torch.randn(2, 16, 5, 6, requires_grad=True))) == 3


def test_a_failure_in_the_middle_changes_nothing(monkeypatch):
    block, x = fresh(TRAINED[3])
    before = copy.deepcopy(block.state_dict())
    from fused_resnet.backends import reference

    def broken(*_):
        raise RuntimeError("injected")

    monkeypatch.setattr(reference, "conv1x1_bn_add_act", broken)
    with pytest.raises(RuntimeError, match="injected"), use_backend("reference"):
        block(x)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_callers_tensors_stay_and_steps_repeat():
    block, x = fresh(TRAINED[5], torch.float32)
    grad = torch.randn_like(copy.deepcopy(block)(x).detach())
    kept = x.clone(), grad.clone()
    first, second = (step(copy.deepcopy(block), x, grad) for _ in range(2))
    assert torch.equal(x, kept[0]) and torch.equal(grad, kept[1])
    assert all(torch.equal(first[name], second[name]) for name in first)
