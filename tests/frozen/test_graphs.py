"""freeze(model, graph=True): what is captured when, on a stand-in for CUDA; and its numbers on a device."""

import contextlib
import copy
import io

import pytest
import torch

import fused_resnet
from fused_resnet import ArgumentError, freeze
from fused_resnet.backends.promises import COUNTS, constant_weights, weights_are_constant, zero_counts
from fused_resnet.frozen import graphs


class Recorder:
    """Stands for torch.cuda: a graph replays by calling the function again into the memory of its output."""

    def __init__(self, monkeypatch):
        self.captures, self.replays, self.recording = 0, 0, False
        cuda = torch.cuda
        stream = type("Stream", (), {"wait_stream": lambda *_: None})
        for name, stand_in in {
            "Stream": stream,
            "current_stream": stream,
            "stream": lambda _: contextlib.nullcontext(),
            "device": lambda _: contextlib.nullcontext(),
            "CUDAGraph": lambda: self.Graph(self),
            "graph": lambda graph: self.capture(),
        }.items():
            monkeypatch.setattr(cuda, name, stand_in)

    @contextlib.contextmanager
    def capture(self):
        self.captures += 1
        yield

    class Graph:
        def __init__(self, owner):
            self.owner = owner

        def replay(self):
            self.owner.replays += 1
            self.run()


class OnGpu(torch.Tensor):
    """A CPU tensor that says it lies on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)


@pytest.fixture
def replayed(monkeypatch):
    """Graphs of y = 2 x over the stand-in, and the stand-in."""
    recorder = Recorder(monkeypatch)
    made = graphs.Graphs(lambda x: x * 2)
    capture = made._capture

    def remembered(x):
        captured = capture(x)
        captured.graph.run = torch.inference_mode()(lambda: captured.y.copy_(captured.x * 2))
        return captured

    made._capture = remembered
    return made, recorder


def gpu(*size):
    return torch.randn(*size).as_subclass(OnGpu)


def test_a_shape_is_captured_once_and_its_answers_are_the_callers(replayed):
    call, recorder = replayed
    x, other = gpu(2, 3), gpu(2, 3)
    first, second = call(x), call(other)
    assert (recorder.captures, recorder.replays) == (1, 2)
    assert torch.equal(first, x * 2) and torch.equal(second, other * 2)
    call(gpu(4, 3)), call(gpu(2, 3).half())
    assert recorder.captures == 3
    call.forget()
    call(x)
    assert recorder.captures == 4


def test_the_oldest_shape_goes_first(replayed):
    call, recorder = replayed
    for n in range(graphs.MOST + 1):
        call(gpu(n + 1, 2))
    assert len(call._captured) == graphs.MOST
    call(gpu(2, 2))
    assert recorder.captures == graphs.MOST + 1, "the second shape is still there"
    call(gpu(1, 2))
    assert recorder.captures == graphs.MOST + 2, "the first is not"


def test_weights_are_promised_to_be_constant_in_the_capture_alone(monkeypatch):
    Recorder(monkeypatch)
    promised = []
    graphs.Graphs(lambda x: promised.append(weights_are_constant()) or x)._capture(gpu(2, 3))
    assert promised == [False] * graphs.WARM_UP + [True] and not weights_are_constant()


def test_a_graph_is_of_one_precision(replayed, monkeypatch):
    call, recorder = replayed
    x = gpu(2, 3)
    call(x)
    with monkeypatch.context() as under:
        under.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        call(x), call(x)
    assert recorder.captures == 2
    convolutions = torch.backends.cudnn.conv
    before, other = convolutions.fp32_precision, "ieee" if convolutions.fp32_precision == "tf32" else "tf32"
    try:
        convolutions.fp32_precision = other
        call(x), call(x)
    finally:
        convolutions.fp32_precision = before
    call(x)
    assert recorder.captures == 3


def test_a_graph_captured_in_inference_mode_serves_other_calls(replayed):
    call, recorder = replayed
    x = gpu(2, 3)
    with torch.inference_mode():
        call(x)
    with torch.no_grad():
        assert torch.equal(call(x), x * 2)
    assert recorder.captures == 1


def test_counts_are_shared_within_the_promise_alone():
    device = torch.device("cpu")
    assert zero_counts(3, device).tolist() == [0] * 3
    with constant_weights():
        first = zero_counts(3, device)
        assert first is zero_counts(4, device) and not first.any() and len(first) >= 4
        assert zero_counts(COUNTS + 1, device) is not first
    with constant_weights():
        assert zero_counts(3, device) is not first


def test_on_a_cpu_it_says_what_to_do():
    frozen = freeze(fused_resnet.cifar_resnet20().eval(), graph=True)
    with pytest.raises(ArgumentError, match="graph=True.* the input is on cpu; move model and input to a GPU"):
        frozen(torch.randn(1, 3, 8, 8))


def test_new_memory_and_copies_forget_the_graphs():
    frozen = freeze(fused_resnet.cifar_resnet20().eval(), graph=True)
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(frozen), torch.load(buffer, weights_only=False)):
        other._graphs._captured["shape"] = None
        assert not frozen._graphs._captured and other._graphs._function.__self__ is other
        assert not other.half()._graphs._captured
    assert copy.deepcopy(freeze(fused_resnet.cifar_resnet20().eval()))._graphs is None


@pytest.mark.gpu
def test_replays_give_the_frozen_models_numbers():
    model = fused_resnet.resnet18().eval().cuda()
    plain, replayed = freeze(model), freeze(model, graph=True)
    for n in (1, 2, 1):
        x = torch.randn(n, 3, 64, 64, device="cuda")
        assert torch.equal(plain(x), replayed(x))
