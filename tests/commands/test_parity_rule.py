"""The rule of `fused_resnet.parity`: rounding passes it, whatever the baseline's luck, and faults do not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fused_resnet.parity import Rounding, compare, sampled, table

EPS = torch.finfo(torch.float32).eps


def product(pixels=64, channels=48, filters=32, seed=0, dtype=torch.float32):
    """(ours, gold, disturbed) of a matrix product, ours adding in another order than the reference."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(*size, generator=generator).to(dtype) for size in ((filters, channels), (channels, pixels)))
    order = torch.randperm(channels, generator=generator)
    ours = (a[:, order].float() @ b[order].float()).to(dtype)
    return ours, a.double() @ b.double(), list(sampled(lambda: a @ b, seed=seed))


def share(ours, gold, disturbed):
    return compare("y", ours, gold, disturbed).share


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(1, 48, 1), (1, 48, 8), (64, 48, 32)], ids=str)
def test_an_equally_accurate_result_passes_whatever_the_luck(size, dtype):
    """Of one value or eight, too, where the baseline's own error is near zero in many draws."""
    assert max(share(*product(*size, seed=seed, dtype=dtype)) for seed in range(40)) < 0.75


FAULTS = {
    "a thousandth in one channel": lambda y: torch.cat((y[:5], y[5:6] * 1.001, y[6:])),
    "a ten-thousandth in all": lambda y: y * 1.0001,
    "a thousandth of the RMS on one channel": lambda y: torch.cat((y[:1], y[1:2] + 0.007, y[2:])),
    "one element": lambda y: torch.cat((y[:9], torch.cat((y[9:10, :7], y[9:10, 7:8] + 1e-3, y[9:10, 8:]), 1), y[10:])),
    "two channels exchanged": lambda y: y[[1, 0, *range(2, len(y))]],
    "ten bits of precision": lambda y: (y.view(torch.int32) >> 13 << 13).view(torch.float32),
    "nothing": lambda y: torch.zeros_like(y),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_noticed(fault):
    ours, gold, disturbed = product()
    assert share(ours, gold, disturbed) < 0.75
    assert share(fault(ours), gold, disturbed) > 2


def test_a_wrong_factor_in_a_quiet_channel_is_not_excused_by_loud_ones():
    ours, gold, disturbed = product()
    loud = torch.ones(len(ours), 1).index_fill(0, torch.tensor([3]), 1e-5) * 1e4
    ours, gold, disturbed = ours * loud, gold * loud.double(), [one * loud for one in disturbed]
    assert share(ours, gold, disturbed) < 0.75
    ours[3] *= 1.001
    row = compare("y", ours, gold, disturbed)
    assert row.share > 1 and row.along and row.worst == (3,)


def test_the_worst_element_is_named_in_the_outputs_own_coordinates():
    x, weight = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3)
    gold = F.conv2d(x.double(), weight.double())
    disturbed = list(sampled(lambda: F.conv2d(x, weight)))
    ours = F.conv2d(x, weight)
    assert share(ours, gold, disturbed) < 0.75
    ours[1, 2, 3, 0] += 0.01
    row = compare("y", ours, gold, disturbed)
    assert not row.passed and not row.along and row.worst == (1, 2, 3, 0)
    assert "FAILED, worst at [1, 2, 3, 0]" in table([row])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_must_stand_where_it_does_in_float64(value):
    ours, gold, disturbed = product()
    for tensor in (ours, gold, *disturbed):
        tensor[4, 5] = value
    assert share(ours, gold, disturbed) < 0.75
    moved, missing, wrong = (ours.clone() for _ in range(3))
    moved[4, 6] = value
    missing[4, 5] = 1.0
    wrong[4, 5] = math.inf if value != math.inf else -math.inf
    for broken in (moved, missing, wrong):
        row = compare("y", broken, gold, disturbed)
        assert row.share == math.inf and row.worst[0] == 4
    ours[7, 7] += 9.0  # beside it, the rest is judged as ever
    assert share(ours, gold, disturbed) > 100


def test_a_baseline_that_is_not_finite_where_float64_is_cannot_judge():
    ours, gold, disturbed = product()
    disturbed[3][2, 1] = math.inf
    with pytest.raises(ValueError, match=r"layer3: the reference in torch.float32 is inf at \[2, 1\].*cannot judge"):
        compare("layer3", ours, gold, disturbed)


def test_comparisons_that_prove_nothing_are_refused():
    ours, gold, disturbed = product()
    with pytest.raises(ValueError, match=r"y: an empty output proves nothing, got shape \(0, 64\)"):
        compare("y", ours[:0], gold[:0], [one[:0] for one in disturbed])
    with pytest.raises(ValueError, match="y: an output is compared with itself"):
        compare("y", ours, gold, [ours, ours])
    with pytest.raises(ValueError, match="y: an output is compared with itself"):
        compare("y", gold, gold, disturbed)
    with pytest.raises(ValueError, match="y: a spread takes at least 2 disturbed runs of the reference, got 1"):
        compare("y", ours, gold, disturbed[:1])
    with pytest.raises(ValueError, match=r"y: ours has shape \(32, 63\) where float64's has \(32, 64\)"):
        compare("y", ours[:, 1:], gold, disturbed)
    with pytest.raises(ValueError, match=r"ours is .* in torch.float32, the reference .* in torch.float16"):
        compare("y", ours, gold, [one.half() for one in disturbed])
    with pytest.raises(ValueError, match="at least 2 runs, got 1"):
        next(sampled(lambda: ours + 1, runs=1))


# ---- the sampling ----


def spread(function, runs=400):
    found = torch.stack([run.double() for run in sampled(function, runs)])
    return found.std(0)


def test_one_rounding_has_the_size_of_a_rounding():
    x = torch.rand(2000, dtype=torch.float64) + 1
    narrow = x.float()
    seen = spread(lambda: narrow * 1.5).mean() / (narrow * 1.5).double().mean()
    actual = ((narrow.double() * 1.1).float().double() - narrow.double() * 1.1).square().mean().sqrt()
    assert 0.5 < seen * (narrow.double() * 1.1).mean() / actual < 2


@pytest.mark.parametrize("terms", [16, 1024])
def test_a_sum_of_many_terms_varies_as_the_orders_of_its_terms_do(terms):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(terms, generator=generator)
    orders = [x[torch.randperm(terms, generator=generator)] for _ in range(300)]
    actual = torch.stack([order.cumsum(0, dtype=torch.float32)[-1].double() for order in orders])
    running = torch.zeros(300)
    for column in torch.stack(orders).unbind(1):  # one term after the other
        running = running + column
    actual = (running.double() - x.double().sum()).square().mean().sqrt()
    sampled_size = spread(lambda: x.sum()[None])[0]
    assert 0.7 < sampled_size / actual < 3


def test_values_that_are_only_moved_or_chosen_stay_as_they_are():
    x = torch.randn(2, 3, 8, 8)
    with Rounding(0):
        exact = [
            x.relu(), x[:, ::2].clone(), x.permute(0, 2, 3, 1).reshape(-1, 3), torch.cat((x, x)), -x, x.clamp(min=0),
            torch.where(x > 0, x, 0), F.pad(x, (1, 1)), x.double(), F.max_pool2d(x, 2), torch.zeros(3), x.amax((2, 3)),
        ]  # fmt: skip
        assert not torch.equal(x + 1.1, x.add(1.1))
    known = torch.cat((x.flatten(), -x.flatten(), torch.zeros(1)))
    assert all(torch.isin(one.float(), known).all() for one in exact)


def test_what_rounds_inside_is_disturbed_inside():
    """A batch norm near its mean: what cancels there leaves an error of the size of what cancelled."""
    x = torch.full((1, 4, 1, 1), 1000.0)
    mean, var = torch.full((4,), 1000.0), torch.ones(4)
    seen = spread(lambda: F.batch_norm(x, mean, var, torch.ones(4), torch.zeros(4), eps=1e-12) + (x - x))
    assert (seen <= 1000 * EPS).all()
    seen = spread(lambda: torch.addcmul(-x, x, torch.ones(4, 1, 1)))
    assert (seen > 100 * EPS).all()


NORMS = {
    "evaluating": lambda x, mean, var, *rest: F.batch_norm(x, mean, var, *rest),
    "training": lambda x, mean, var, *rest: F.batch_norm(x, mean, var, *rest, training=True),
    "training, nothing running": lambda x, mean, var, *rest: F.batch_norm(x, None, None, *rest, training=True),
    "plain": lambda x, mean, var, *rest: F.batch_norm(x, mean, var),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_disturbed_norm_is_the_norm(norm):
    x, (mean, var, weight, bias) = torch.rand(3, 5, 4, 6), torch.rand(4, 5)
    one, other = ([mean.clone(), var.clone()] for _ in range(2))
    right = norm(x, *one, weight, bias)
    with Rounding(0):
        found = norm(x, *other, weight, bias)
    assert not torch.equal(found, right)
    torch.testing.assert_close((found, *other), (right, *one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_a_norm_errs_alike_at_all_pixels_of_a_channel(training):
    """Its bias is large, and one rounding of what is added moves the whole channel."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(4, 16, 13, 16, generator=generator)
        weight, bias, mean, var = (torch.rand(16, generator=generator) + 0.1 for _ in range(4))
        given = [x, mean, var, weight, 30 * bias]

        def norm(x, mean, var, *rest):
            return F.batch_norm(x, mean.clone(), var.clone(), *rest, training=training)

        gold = norm(*(one.double() for one in given))
        row = compare("y", norm(*given), gold, sampled(lambda given=given: norm(*given), seed=seed))
        assert row.share < 0.6, row


def test_the_same_seed_disturbs_alike_and_another_does_not():
    x = torch.randn(50)
    one, again, other = (next(sampled(lambda: x * 1.1 + 0.3, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_what_is_not_finite_stays():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    for run in sampled(lambda: x * 2, 4):
        assert torch.equal(run[:2], x[:2]) and run[2].isnan() and run[3].isfinite()


def test_sums_are_measured_once_for_all_runs():
    seen = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    a = torch.randn(8, 8)
    with Count():
        list(sampled(lambda: a @ a, 12))
    assert seen.count("mm") == 12 + 1
