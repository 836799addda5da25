"""Threads, tasks and autograd: a `with` is its own thread's, a plain call the process's, and a call asks once.

Threads take turns: each is an executor of one worker, whose results are waited for.
"""

import asyncio
import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fused_resnet import Bottleneck, explain, freeze, use_backend
from fused_resnet.models.cifar import CifarResNet
from fused_resnet.ops import dispatch

# ---- the choice ----


def test_overlapping_contexts_leave_nothing_behind(threads):
    a, b = threads
    contexts = [thread(use_backend, name) for thread, name in ((a, "reference"), (b, "onednn"))]
    seen = lambda: [dispatch.current(), a(dispatch.current), b(dispatch.current)]  # noqa: E731
    # a choice that is not entered yet is none of the others' business
    assert dispatch.current() == "auto"
    a(contexts[0].__enter__)
    assert [dispatch.current(), a(dispatch.current)] == ["auto", "reference"]
    b(contexts[1].__enter__)
    assert seen() == ["auto", "reference", "onednn"]
    a(contexts[0].__exit__)
    assert seen() == ["auto", "auto", "onednn"]
    b(contexts[1].__exit__)
    assert seen() == ["auto"] * 3
    del contexts
    assert seen() == ["auto"] * 3


def test_the_plain_call_reaches_every_thread_that_is_in_no_context(threads):
    a, b = threads
    context = a(use_backend, "onednn")
    a(context.__enter__)
    b(lambda: use_backend("reference") and None)
    assert [dispatch.current(), a(dispatch.current), b(dispatch.current)] == ["reference", "onednn", "reference"]
    with use_backend("auto"):
        use_backend("onednn")
        assert [dispatch.current(), b(dispatch.current)] == ["auto", "onednn"]
    a(context.__exit__)
    assert [dispatch.current(), a(dispatch.current)] == ["onednn"] * 2


def test_a_plain_call_whose_object_is_kept_counts_from_the_next_use(threads):
    kept = use_backend("reference")
    assert threads[0](dispatch.current) == "auto"
    assert dispatch.current() == threads[0](dispatch.current) == "reference"
    shown = use_backend("onednn")
    assert repr(shown) == "use_backend('onednn')" and threads[0](dispatch.current) == "onednn"
    last = use_backend("auto")
    del kept, shown  # said before the last one
    assert dispatch.current() == "auto"
    with last:
        assert dispatch.current() == "auto"


def test_a_request_that_is_dropped_late_does_not_undo_a_later_one(threads):
    first = threads[0](use_backend, "reference")
    use_backend("onednn")
    del first
    gc.collect()
    assert dispatch.current() == threads[0](dispatch.current) == "onednn"


def test_nesting_reentering_and_raising():
    reference = use_backend("reference")
    with reference, use_backend("onednn"), reference:
        assert dispatch.current() == "reference"
        with pytest.raises(ValueError), use_backend("auto"):
            raise ValueError
        assert dispatch.current() == "reference"
    with reference:
        assert dispatch.current() == "reference"
    assert dispatch.current() == "auto"


def test_contexts_of_generators_are_left_in_any_order():
    def asking(name):
        with use_backend(name):
            yield

    one, other = asking("reference"), asking("onednn")
    next(one), next(other)
    assert dispatch.current() == "onednn"
    one.close()
    assert dispatch.current() == "onednn"
    other.close()
    assert dispatch.current() == "auto"


def test_a_context_is_left_where_it_was_entered(threads):
    context = use_backend("reference")
    context.__enter__()
    with pytest.raises(RuntimeError, match=r"use_backend\('reference'\) is left in a thread or task that has not"):
        threads[0](context.__exit__)
    assert [dispatch.current(), threads[0](dispatch.current)] == ["reference", "auto"]
    context.__exit__()
    assert dispatch.current() == "auto"


def test_tasks_have_choices_of_their_own_and_hand_them_on():
    async def main():
        entered, left = asyncio.Event(), asyncio.Event()

        async def first():
            with use_backend("reference"):
                entered.set()
                await left.wait()
                inherited = await asyncio.create_task(current()), await asyncio.to_thread(dispatch.current)
                return dispatch.current(), *inherited

        async def second():
            await entered.wait()
            with use_backend("onednn"):
                pass
            left.set()
            return dispatch.current()

        async def current():
            return dispatch.current()

        return await asyncio.gather(first(), second())

    assert asyncio.run(main()) == [("reference",) * 3, "auto"]
    assert dispatch.current() == "auto"


# ---- one call, one choice ----


class Switching:
    """At the n-th question for an op's backend, another thread asks for `name` by the plain call."""

    def __init__(self, monkeypatch, thread, name):
        self.thread, self.name, self.at, self.asked = thread, name, 0, 0
        for question in ("implementation", "taken_by_name", "trains_by_name"):
            monkeypatch.setattr(dispatch, question, self.interrupted(getattr(dispatch, question)))

    def interrupted(self, question):
        def ask(*arguments, **named):
            self.asked += 1
            if self.asked == self.at:
                self.thread(lambda: use_backend(self.name) and None)
            return question(*arguments, **named)

        return ask

    def run(self, call, at, name="reference"):
        """The call with the process's choice `name` at its beginning, and how many questions it asked."""
        use_backend(name)
        self.at, self.asked = at, 0
        result = call()
        use_backend("auto")
        return result, self.asked


def at_every_question(switching, call):
    expected, questions = switching.run(call, 0)
    assert questions > 1
    for at in range(1, questions + 1):
        found, _ = switching.run(call, at)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other), at


@pytest.mark.parametrize("name", ["auto", "onednn"])
@pytest.mark.parametrize("kind", ["live", "frozen"])
def test_inference_keeps_the_backend_that_it_began_with(kind, name, threads, monkeypatch):
    model, x = CifarResNet(8).eval(), torch.randn(2, 3, 8, 8)
    model = freeze(model) if kind == "frozen" else model

    def call():
        with torch.no_grad(), dispatch.recording() as rows:
            y = model(x)
        assert {row.backend for row in rows if row.op} == {"reference"}
        return [y]

    at_every_question(Switching(monkeypatch, threads[0], name), call)


def test_a_frozen_bottleneck_keeps_the_backend_that_it_began_with(threads, monkeypatch):
    block, x = freeze(Bottleneck(16, 4).eval()), torch.randn(1, 16, 8, 8)
    with torch.inference_mode():
        at_every_question(Switching(monkeypatch, threads[0], "onednn"), lambda: [block(x)])


def test_a_block_on_its_own_keeps_the_backend_that_it_began_with(threads, monkeypatch):
    block, x = Bottleneck(16, 4).eval(), torch.randn(1, 16, 8, 8)

    def call():
        with torch.inference_mode(), dispatch.recording() as rows:
            y = block(x)
        assert {row.backend for row in rows if row.op} == {"reference"}
        return [y]

    at_every_question(Switching(monkeypatch, threads[0], "onednn"), call)


@pytest.mark.parametrize("name", ["auto", "onednn"])
def test_a_training_step_keeps_the_backend_that_it_began_with(name, threads, monkeypatch):
    model, x = CifarResNet(8).train(), torch.randn(2, 3, 8, 8)
    state = copy.deepcopy(model.state_dict())

    def call():
        model.load_state_dict(state)
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]

    at_every_question(Switching(monkeypatch, threads[0], name), call)


def test_many_calls_while_another_thread_switches():
    model, x, done = freeze(Bottleneck(16, 4).eval()), torch.randn(1, 16, 8, 8), threading.Event()

    def switch():
        while not done.is_set():
            for name in ("reference", "onednn", "auto"):
                use_backend(name)

    with ThreadPoolExecutor(1) as pool, torch.inference_mode():
        switching = pool.submit(switch)
        try:
            for _ in range(400):
                model(x)
        finally:
            done.set()
        switching.result()
    use_backend("auto")


# ---- recording ----


def test_explain_tells_nothing_of_another_threads_call(threads):
    model, other, x = CifarResNet(8).eval(), CifarResNet(8).eval(), torch.randn(2, 3, 8, 8)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            threads[0](other, x)
            return self.model(x)

    with torch.no_grad(), dispatch.recording() as rows:
        threads[0](other, x)
        assert rows == []
        names = [row.name for row in explain(Both(), x).rows]
    assert names == ["model.conv1", *(f"model.layer{i}.0" for i in (1, 2, 3)), "model.avgpool"]
    assert rows, "the outer recording is this thread's too"
