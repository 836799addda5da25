"""A backward pass keeps the backend of its forward pass, on whichever thread; checkpoints compute again on it."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fused_resnet import Bottleneck, use_backend
from fused_resnet.models.cifar import CifarResNet
from fused_resnet.ops import dispatch


def backward_backends(y):
    with dispatch.recording() as rows:
        y.square().sum().backward()
    return {row.backend for row in rows if row.op}


def test_a_backward_pass_runs_where_its_forward_pass_ran(threads):
    model, x = CifarResNet(8).train(), torch.randn(2, 3, 8, 8)
    for thread in (lambda call, *arguments: call(*arguments), threads[0]):
        with use_backend("reference"):
            y = model(x)
        assert thread(backward_backends, y) == {"reference"}
        with use_backend("reference"):
            y = model(x)
        with use_backend("onednn"):  # which has no op for it
            assert thread(backward_backends, y) == {"reference"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_compute_again_on_the_backend_asked_for(reentrant):
    model, x = CifarResNet(8).train(), torch.randn(2, 16, 8, 8, requires_grad=True)
    with use_backend("reference"), dispatch.recording() as rows:
        checkpoint(model.layer1, x, use_reentrant=reentrant).square().sum().backward()
    ops = [row.op for row in rows if row.op]
    assert {row.backend for row in rows if row.op} == {"reference"}
    assert ops.count("bn_add_act") == 2, "forward, and again"


def test_what_a_checkpointed_block_computes_again_it_computes_as_before():
    """With nothing asked for any more: it is the block's own Function that reads first, and asks as it did."""
    block, x = Bottleneck(16, 4).train(), torch.randn(2, 16, 8, 8, requires_grad=True)
    with use_backend("reference"):
        y = checkpoint(block, x, use_reentrant=False)
    with dispatch.recording() as rows:
        y.sum().backward()
    assert {row.backend for row in rows if row.op} == {"reference"}


class Deep(torch.autograd.Function):
    """Backward passes within one another, until torch runs one on a thread of its own, as it runs all on a GPU."""

    @staticmethod
    def forward(ctx, x, depth, arrived):
        ctx.depth, ctx.arrived, ctx.thread = depth, arrived, threading.get_ident()
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if threading.get_ident() != ctx.thread:
            ctx.arrived()
        elif ctx.depth:
            with torch.enable_grad():
                Deep.apply(torch.ones(1, requires_grad=True), ctx.depth - 1, ctx.arrived).backward()
        return grad, None, None


@pytest.mark.skipif(
    not hasattr(torch.autograd.graph, "contextvars"), reason="this torch hands no context to autograd's own threads"
)
def test_torchs_own_threads_ask_and_record_as_the_thread_that_started_the_backward_pass():
    model, x = Bottleneck(16, 4).eval(), torch.randn(1, 16, 8, 8)

    def run():
        seen = []

        def arrived():
            seen.append(dispatch.current())
            with torch.no_grad():
                model(x)

        with dispatch.recording() as rows:
            Deep.apply(torch.ones(1, requires_grad=True), 100, arrived).backward()
        assert len(seen) == 1, "torch used no thread of its own"
        return *seen, {row.backend for row in rows if row.op}

    with use_backend("reference"):
        assert run() == ("reference", {"reference"})
    # and nothing stays with that thread
    assert run() == ("auto", {"onednn"})
