"""The training ops: against torch's modules and autograd, torch.library's own checks, layouts, wide means, dispatch."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

import fused_resnet
from fused_resnet.backends import reference
from fused_resnet.ops import dispatch, training
from tests.support.parity import assert_parity
from tests.support.training_arguments import OUTPUTS, comparable
from tests.support.training_cases import CASES, OFFSET_CASES, TrainingCase, layout_cases, with_dtype
from tests.support.training_composed import COMPOSED

HALVES = (*with_dtype(torch.float16), *with_dtype(torch.bfloat16))
LAYOUT_CASES = [case for layout in ("nchw", "sliced", "expanded", "misaligned") for case in layout_cases(layout)]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def first_case(op: str) -> TrainingCase:
    return next(case for case in CASES if case.op == op)


def call(case: TrainingCase):
    return getattr(training, case.op)(**case.inputs())


def test_case_ids_are_unique_and_every_op_has_one():
    ids = [case.id for case in (*CASES, *OFFSET_CASES, *HALVES)]
    assert len(set(ids)) == len(ids)
    assert {case.op for case in CASES} == set(OUTPUTS) == set(training.OPS)


@each([*CASES, *OFFSET_CASES, *HALVES, *LAYOUT_CASES])
def test_parity_with_autograd(case):
    composed = COMPOSED[case.op]
    assert_parity(comparable(case.op, getattr(training, case.op)), composed, case, backend="reference")


@pytest.mark.parametrize("op", training.OPS)
def test_the_backend_has_the_signature_of_the_op(op):
    ours = [(p.name, p.default) for p in inspect.signature(getattr(training, op)).parameters.values()]
    theirs = [(p.name, p.default) for p in inspect.signature(getattr(reference, op)).parameters.values()]
    schema = getattr(torch.ops.fused_resnet, op).default._schema.arguments
    assert ours == theirs and [name for name, _ in ours] == [argument.name for argument in schema]


OPCHECKED = [
    *(first_case(op) for op in training.OPS),
    next(case for case in CASES if case.op == "conv_dgrad" and "skip_out" in case.with_),
    next(case for case in CASES if case.op == "conv_stats" and case.shape.groups > 1),
    *layout_cases("nchw")[:4],
]


@each(OPCHECKED)
def test_opcheck(case):
    op = getattr(torch.ops.fused_resnet, case.op).default
    arguments = case.inputs()
    torch.library.opcheck(op, tuple(arguments[argument.name] for argument in op._schema.arguments))


def tensors(result) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else result


@each([*(first_case(op) for op in training.OPS), *layout_cases("nchw"), *layout_cases("expanded")])
def test_outputs_are_fresh_in_the_promised_layout_and_inputs_untouched(case):
    arguments = case.inputs()
    given = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    kept = {name: value.clone() for name, value in given.items()}
    deciding = [next(iter(arguments.values())), *([arguments["weight"]] if case.op == "conv_stats" else [])]
    last = any(x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) for x in deciding)
    outputs = tensors(getattr(training, case.op)(**arguments))
    for output in outputs:
        maps = torch.channels_last if last and output.dim() == 4 else torch.contiguous_format
        assert case.layout == "expanded" or output.is_contiguous(memory_format=maps)
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*outputs, *given.values()) if tensor.numel()]
    of_outputs = storages[: sum(output.numel() > 0 for output in outputs)]
    assert len(set(of_outputs)) == len(of_outputs) and not set(of_outputs) & set(storages[len(of_outputs) :])
    assert all(torch.equal(given[name], kept[name]) for name in kept)


@each([first_case(op) for op in training.OPS])
def test_the_same_call_gives_the_same_bits(case):
    assert all(torch.equal(a, b) for a, b in zip(tensors(call(case)), tensors(call(case)), strict=True))


def test_a_row_of_partials_is_a_run_of_128_pixels():
    z = torch.randn(3, 5, 9, 10, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    partials = training.channel_stats(z)
    runs = z.permute(0, 2, 3, 1).reshape(-1, 5).split(128)
    assert partials.shape == (len(runs), 3, 5) and len(runs[-1]) < 128
    for row, run in zip(partials, runs, strict=True):
        mean = run.mean(0)
        expected = torch.stack((torch.full((5,), float(len(run))), mean, (run - mean).square().sum(0)))
        torch.testing.assert_close(row, expected.double())
    assert torch.equal(training.conv_stats(z, torch.eye(5).double()[:, :, None, None], *NO_NORM, *PLAIN)[1], partials)


NO_NORM = (None, None)
PLAIN = ((1, 1), (0, 0), (1, 1), 1)


def test_empty_rows_change_no_statistic():
    partials = training.channel_stats(torch.randn(2, 6, 17, 13))
    empty = torch.zeros_like(partials)
    spread = torch.stack((partials, empty), dim=1).flatten(0, 1)
    for padded in (spread, torch.cat((empty, partials)), torch.cat((partials, empty, empty))):
        for ours, expected in zip(
            training.bn_finalize(padded, None, None, 1e-5),
            training.bn_finalize(partials, None, None, 1e-5),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


def empty_batch(case: TrainingCase) -> dict:
    maps = [name for name, value in case.inputs().items() if isinstance(value, torch.Tensor) and value.dim() == 4]
    arguments = case.inputs()
    arguments |= {name: arguments[name][:0] for name in maps if name != "weight"}
    if "input_size" in arguments:
        arguments["input_size"][0] = 0
    return arguments


@pytest.mark.parametrize("op", [op for op in training.OPS if "finalize" not in op])
def test_an_empty_batch_gives_empty_maps_and_zero_sums(op):
    case = first_case(op)
    for ours, full in zip(tensors(getattr(training, op)(**empty_batch(case))), tensors(call(case)), strict=True):
        assert ours.dtype == full.dtype and ours.dim() == full.dim() and not ours.count_nonzero()
        weight = ours.shape == full.shape and op in ("conv_wgrad", "conv1x1_backward")
        assert ours.shape[1:] == full.shape[1:] and (ours.dim() in (1, 2) or weight or len(ours) == 0)


def test_the_statistics_of_an_empty_batch():
    partials = training.channel_stats(torch.randn(0, 4, 3, 3))
    mean, var, *_ = training.bn_finalize(partials, None, None, 1e-5)
    assert partials.shape == (0, 3, 4) and not mean.count_nonzero() and not var.count_nonzero()
    filters = torch.randn(6, 4, 1, 1)
    zeros = training.gram(torch.randn(0, 4, 3, 3), None, None, filters, 1)
    mean, var, *_ = training.gram_finalize(*zeros, 0, filters, None, None, 1e-5)
    assert not mean.count_nonzero() and not var.count_nonzero()


def wide_channels(pixels: int, channels: int, filters: int, dtype: torch.dtype):
    """Correlated activations about 30, as rounded to `dtype`, a 1x1 convolution, and its output; all in float64."""
    basis, mix = torch.randn(pixels, 8, dtype=torch.float64), torch.randn(8, channels, dtype=torch.float64)
    a = (basis @ mix * 0.3 + 0.2 * torch.randn(pixels, channels, dtype=torch.float64) + 30).relu().to(dtype).double()
    weight = (torch.randn(filters, channels, dtype=torch.float64) * (2 / filters) ** 0.5).bfloat16().double()
    return a, weight, a @ weight.T


def as_map(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return rows.to(dtype).T.reshape(1, rows.shape[1], -1, 64)


def worst(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours.double() - truth).abs() / truth.abs()).max().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_variance_of_channels_far_from_zero(dtype):
    a, weight, z = wide_channels(51200, 64, 256, dtype)
    var = z.var(0, correction=0)
    assert (z.mean(0).abs() / var.sqrt()).max() > 68
    raw = (z.float().square().mean(0) - z.float().mean(0).square()).double()
    assert worst(raw, var) > 3e-4, "the case is no longer hard"

    stored = as_map(z, torch.float32)
    of_stored = stored.double().var((0, 2, 3), correction=0)
    assert worst(training.bn_finalize(training.channel_stats(stored), None, None, 1e-5)[1], of_stored) < 1e-6

    filters = weight.to(dtype)[:, :, None, None]
    center, total, gram = training.gram(as_map(a, dtype), None, None, filters, 1)
    assert center.dtype == torch.float32 and torch.equal(center.to(dtype).float(), center) and (center > 0).all()
    assert worst(training.gram_finalize(center, total, gram, len(a), filters, None, None, 1e-5)[1], var) < 1e-6


def test_weight_gradient_of_channels_far_from_zero():
    a, weight, z = wide_channels(12800, 64, 128, torch.bfloat16)
    g = (torch.randn_like(z) * 0.01 + 0.002 * torch.randn(128, dtype=torch.float64)).bfloat16().double()
    truth = weight.clone().requires_grad_()
    F.batch_norm(a @ truth.T, None, None, training=True, eps=1e-5).backward(g)

    def d_weight(center: torch.Tensor, total: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
        sums = (center, total, gram, len(a))
        invstd = training.gram_finalize(*sums, weight.float()[:, :, None, None], None, None, 1e-5)[2].double()
        maps = as_map(g, torch.bfloat16), None, as_map(a, torch.bfloat16)
        products, sum_g, _ = training.gram_products(*maps, None, None, center, weight.bfloat16(), 1)
        products, sum_g, total, gram = (tensor.double() for tensor in (products, sum_g, total, gram))
        mean = weight @ total / len(a)
        d_norm = ((weight * products).sum(1) - mean * sum_g) * invstd
        beta = -invstd.square() * d_norm / len(a)
        kappa = -invstd * sum_g / len(a) - beta * mean
        return invstd[:, None] * products + beta[:, None] * (weight @ gram) + torch.outer(kappa, total)

    def error(ours: torch.Tensor) -> float:
        return ((ours - truth.grad).norm() / truth.grad.norm()).item()

    center, total, gram = training.gram(as_map(a, torch.bfloat16), None, None, weight[:, :, None, None], 1)
    assert error(d_weight(center, total, gram)) < 2e-6
    uncentered = as_map(a, torch.float32).flatten(2)[0]
    assert error(d_weight(torch.zeros_like(center), uncentered.sum(1), uncentered @ uncentered.T)) > 2e-5


def test_pooling_ties_and_nan_fall_as_in_torch():
    z = torch.randint(-2, 3, (2, 4, 9, 9)).float()
    z[0, 1, 4, 4] = torch.nan
    z[1, 2, 3, 5] = torch.inf
    one, zero = torch.ones(4), torch.zeros(4)
    y, argmax = training.bn_relu_maxpool(z, one, zero, 3, 2, 1)
    leaf = z.clone().requires_grad_()
    expected, index = F.max_pool2d(leaf.relu(), 3, 2, 1, return_indices=True)
    torch.testing.assert_close(y, expected, equal_nan=True)
    top = torch.arange(5).view(-1, 1) * 2 - 1 + argmax // 3
    left = torch.arange(5) * 2 - 1 + argmax % 3
    assert torch.equal(top * 9 + left, index)
    grad = torch.randn_like(y)
    expected.backward(grad)
    g, *_ = training.bn_relu_maxpool_backward(grad, argmax, z, one, zero, zero, 3, 2, 1)
    torch.testing.assert_close(g, leaf.grad)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_pass_masks_and_prologues_as_in_torch(value):
    grad, out, z = (torch.randn(2, 4, 5, 6) for _ in range(3))
    leaf = out.clone()
    leaf[0, 1, 2, 3] = value
    grad[1, 2, 0, 0] = value
    leaf.requires_grad_()
    leaf.relu().backward(grad)
    g, *_ = training.bn_act_backward(grad, leaf.detach().relu(), z, torch.zeros(4))
    torch.testing.assert_close(g, leaf.grad, equal_nan=True)
    y = training.bn_add_act(leaf.detach(), torch.ones(4), torch.zeros(4), None, 1, "relu")
    torch.testing.assert_close(y, leaf.detach().relu(), equal_nan=True)


def test_dispatch_says_why_a_backend_does_not_train():
    z = torch.randn(2, 4, 5, 6)
    with dispatch.recording() as decisions:
        training.channel_stats(z)
    assert [(d.op, d.backend) for d in decisions] == [("channel_stats", "reference")]
    assert "not onednn: it runs inference only, channel_stats" in decisions[0].backend_reason
    with fused_resnet.use_backend("onednn"), pytest.raises(fused_resnet.BackendError, match="inference only"):
        training.channel_stats(z)


def test_a_backend_without_the_function_is_passed_over(monkeypatch):
    monkeypatch.delattr(reference, "channel_stats")
    with fused_resnet.use_backend("reference"):
        with pytest.raises(fused_resnet.BackendError, match="'reference' cannot run channel_stats: it has no"):
            training.channel_stats(torch.randn(2, 4, 5, 6))
    with pytest.raises(fused_resnet.BackendError, match="not reference: it has no channel_stats"):
        training.channel_stats(torch.randn(2, 4, 5, 6))


def test_a_gradient_is_refused_with_the_way_out():
    with pytest.raises(RuntimeError, match=r"bn_add_act is a raw op without a backward.*no_grad"):
        training.bn_add_act(torch.randn(2, 4, 3, 3), torch.ones(4).requires_grad_(), torch.zeros(4), None, 1, "relu")


def test_ops_keep_their_dtypes_under_autocast():
    case = first_case("conv_stats")
    expected = call(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, partials = call(case)
    assert torch.equal(z, expected[0]) and torch.equal(partials, expected[1])
