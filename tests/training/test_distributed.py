"""Training in two processes over gloo: DistributedDataParallel, SyncBatchNorm, and what happens when ranks differ."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fused_resnet import BasicBlock, Bottleneck, use_backend
from fused_resnet.backends import unavailable_reason
from tests.models.test_blocks import projection, randomise
from tests.support.parity import assert_as_near
from tests.support.two_processes import F64, WORLD, batch, both, network, trained

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch was built without torch.distributed")


def close(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(
            ours[name], expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def everything(rank):
    scenarios = data_parallel, synchronised, one_block, groups_and_differences
    return {scenario.__name__: scenario(rank) for scenario in scenarios}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each scenario found in each process; all of them in one pair, since starting one takes seconds."""
    found = both(everything, tmp_path_factory.mktemp("ranks"))
    return {name: [each[name] for each in found] for name in found[0]}


# DistributedDataParallel alone

VARIANTS = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
}


def data_parallel(rank):
    x, weights = (part.chunk(WORLD)[rank] for part in batch())
    return {name: trained(DistributedDataParallel(network(), **kw), x, weights) for name, kw in VARIANTS.items()}


def test_data_parallel_gradients_are_the_processes_average(ranks):
    found = ranks["data_parallel"]
    halves = zip(*(part.chunk(WORLD) for part in batch()), strict=True)
    alone = [trained(network(), *half) for half in halves]
    for rank, variants in enumerate(found):
        for ours in variants.values():
            for name, own in alone[rank].items():
                average = sum(each[name] for each in alone) / WORLD
                torch.testing.assert_close(ours[name], average if name.startswith("grad") else own)


# SyncBatchNorm

SPLITS = {"halves": [3, 3], "unequal": [5, 1], "one empty": [6, 0]}


def synchronised(rank):
    found = {}
    for dtype in (F64, torch.float32):
        for name, split in SPLITS.items():
            own = [part.split(split)[rank] for part in batch(dtype)]
            for repeat in range(2):
                model = DistributedDataParallel(network(dtype))
                # The other way round, as on GPUs, it refuses: torch's own SyncBatchNorm has no CPU kernels.
                model.module = nn.SyncBatchNorm.convert_sync_batchnorm(model.module)
                found[f"{name} {dtype} {repeat}"] = trained(model, *own, factor=WORLD)
    return found


def test_synchronised_norms_equal_one_process_on_the_whole_batch(ranks):
    found = ranks["synchronised"]
    exact = trained(network(), *batch(), backend="auto")

    def eager():
        return trained(network(torch.float32), *batch(torch.float32), backend="auto")

    for split in SPLITS:
        joined = {}
        for dtype in (F64, torch.float32):
            first, again = ([each[f"{split} {dtype} {repeat}"] for each in found] for repeat in range(2))
            for rank in range(WORLD):
                assert all(torch.equal(first[rank][name], again[rank][name]) for name in exact), "not repeatable"
            joined[dtype] = {}
            for name in exact:
                if name in ("x", "y"):
                    joined[dtype][name] = torch.cat([each[name] for each in first])
                else:
                    assert torch.equal(first[0][name], first[1][name]), f"{name} differs between the ranks"
                    joined[dtype][name] = first[0][name]
        close(joined[F64], exact)
        assert_as_near(joined[torch.float32], eager, exact)


def backends():
    """The backends that train here, each with the device of its maps."""
    found = {"reference": "cpu"}
    if unavailable_reason("triton") is None:
        found["triton"] = "cuda" if torch.cuda.is_available() else "cpu"
    return found


def small_block():
    torch.manual_seed(3)
    return randomise(Bottleneck(8, 4, 1, projection(8, 16, 1))).train()


def one_block(rank):
    """Maps of other sizes on each rank."""
    block = nn.SyncBatchNorm.convert_sync_batchnorm(small_block())
    maps = [torch.randn(2, 8, 5, 7), torch.randn(1, 8, 4, 3)]
    weights = torch.randn(16, 1, 1)
    found = {}
    for name, device in backends().items():
        step = trained(copy.deepcopy(block).to(device), maps[rank].to(device), weights.to(device), backend=name)
        found[name] = {key: tensor.cpu() for key, tensor in step.items()}
    return found, [block.conv1(each).detach() for each in maps]


def test_ranks_may_have_maps_of_other_sizes(ranks):
    (first, maps), (second, _) = ranks["one_block"]
    values = torch.cat([z.transpose(0, 1).flatten(1) for z in maps], dim=1).double()
    fresh = small_block().bn1
    assert first.keys() == backends().keys()
    for backend, ours in first.items():
        for name, old, new in (("mean", fresh.running_mean, values.mean(1)), ("var", fresh.running_var, values.var(1))):
            expected = (0.9 * old.double() + 0.1 * new).float()
            torch.testing.assert_close(ours[f"bn1.running_{name}"], expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(ours[f"bn1.running_{name}"], second[backend][f"bn1.running_{name}"])
        close(ours, first["reference"], 1e-4)


def test_alone_it_is_a_plain_batch_norm():
    """Without torch.distributed, and with no image at all."""
    for images in (2, 0):
        x, weights = torch.randn(images, 8, 5, 7), torch.randn(16, 1, 1)
        plain, shared = small_block(), nn.SyncBatchNorm.convert_sync_batchnorm(small_block())
        with use_backend("reference"):
            assert shared.untrainable_reason(x) is None
        expected, found = trained(plain, x, weights), trained(shared, x, weights)
        for name in expected:
            assert torch.equal(found[name], expected[name]), name


# Groups, and ranks that differ


def refusal(function):
    """The message of the ValueError that `function` raises; None where it raises none."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return None


def groups_and_differences(rank):
    x, weights = batch()
    alone = [dist.new_group([each]) for each in range(WORLD)]
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    found = {"alone": trained(convert(network(), alone[rank]), x, weights)}

    def refused(model, x, group=None):
        model = convert(model, group)
        before = copy.deepcopy(model.state_dict())
        with use_backend("reference"):
            message = refusal(lambda: model(x))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return message

    block = Bottleneck(16, 4 + 4 * rank, 1, projection(16, 16 + 16 * rank, 1))
    other_dtype = randomise(BasicBlock(8, 8)).train().to(torch.float32 if rank else F64)
    one_value = torch.full((1, 16, 1, 1), float(rank))
    found["messages"] = {
        "foreign group": refused(network(), x, alone[1 - rank]),
        "other channels": refused(block.train(), torch.ones(2, 16, 4, 4)),
        "other dtype": refused(other_dtype, torch.ones(2, 8, 4, 4).to(other_dtype.conv1.weight)),
        "one value": refused(Bottleneck(16, 4).train(), one_value, alone[rank]),
    }
    with use_backend("reference"):
        two_values = convert(Bottleneck(16, 4)).train()(one_value)
        if rank == 0:
            # nobody else takes part: constants are nobody's business
            found["eval"] = convert(network()).eval()(x).detach()
    return found | {"two values": two_values.detach()}


def test_groups_and_ranks_that_differ(ranks):
    found = ranks["groups_and_differences"]
    expected = trained(network(), *batch())
    for rank, ours in enumerate(found):
        for name in expected:
            assert torch.equal(ours["alone"][name], expected[name]), name
        said = ours["messages"]
        assert said["foreign group"].startswith(f"rank {rank} is not in the process group of a SyncBatchNorm of 8")
        channels = [f"norms of {c}, {c}, {4 * c}, {4 * c} channels in torch.float32" for c in (4, 8)]
        assert f"rank {rank} of the group has {channels[rank]}, rank {1 - rank}" in said["other channels"]
        assert channels[1 - rank] in said["other channels"]
        assert "in torch.float64" in said["other dtype"] and "in torch.float32" in said["other dtype"]
        assert said["one value"].startswith("Expected more than 1 value per channel when training")
        assert ours["two values"].isfinite().all()
    torch.testing.assert_close(found[0]["eval"], network().eval()(batch()[0]).detach())


def one_fails(rank):
    from fused_resnet.backends import reference

    model = nn.SyncBatchNorm.convert_sync_batchnorm(BasicBlock(8, 8)).train()
    before = copy.deepcopy(model.state_dict())
    whole, calls = reference.conv_stats, []

    def broken(*arguments):
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            raise RuntimeError("injected")
        return whole(*arguments)

    reference.conv_stats = broken
    try:
        with use_backend("reference"):
            model(torch.randn(2, 8, 4, 4))
        message = None
    except RuntimeError as error:
        message = str(error)
    return message, [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]


def test_a_rank_that_fails_stops_the_other_with_nothing_changed(tmp_path):
    (waiting, changed), (failing, changed_there) = both(one_fails, tmp_path)
    assert failing == "injected" and changed_there == []
    assert waiting is not None and changed == [], "the rank that was left alone must raise, and change nothing"
