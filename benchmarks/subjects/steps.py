"""The rows of the training benchmark: one set of weights, one batch, and every way in which a step is run with them."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fused_resnet

from .candidates import Network

LEARNING_RATE = 1e-3  # the batch never changes, and a step's time does not depend on it
MOMENTUM = 0.9


@dataclass(frozen=True)
class Recipe:
    """One row: whose network, in which layout and precision, replayed from a CUDA graph, or compiled in which mode."""

    ours: bool
    amp: torch.dtype | None = None
    channels_last: bool = True
    graph: bool = False
    compile_mode: str | None = None

    def label(self, baseline: str) -> str:
        parts = ["fused_resnet" if self.ours else baseline]
        parts += ["channels_last"] if self.channels_last else []
        parts += [f"amp {str(self.amp).removeprefix('torch.')}"] if self.amp else []
        parts += ["graph"] if self.graph else []
        parts += [f"compile {self.compile_mode}"] if self.compile_mode else []
        return " ".join(parts)


def recipes(device: torch.device, amp: torch.dtype | None, peers: bool) -> list[Recipe]:
    """The rows for a device; torchvision eager in channels_last, which the others are judged by, among them."""
    rows = [Recipe(True, amp), Recipe(False, amp)]
    if device.type == "cuda":
        rows += [Recipe(True, amp, graph=True), Recipe(False, amp, graph=True)]
    else:
        rows += [Recipe(False, amp, channels_last=False)]
    if peers:
        rows += [Recipe(ours, amp, compile_mode="default") for ours in (False, True)]
        rows += [Recipe(False, amp, compile_mode="max-autotune")]
    return rows


class Step:
    """A training step: `step()` zeroes the gradients, runs forward, cross entropy, backward and SGD, returns the loss.

    Args:
        model: in training mode, in place on its device.
        images, labels: the batch, in place.
        amp: autocast's dtype; None leaves autocast off. With float16 the loss is scaled, as a GradScaler would.
        backend: what fused_resnet's ops run on.
        run: the callable that computes the logits; the model itself, or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        amp: torch.dtype | None,
        backend: str,
        run: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model, self.images, self.labels, self.amp, self.backend = model, images, labels, amp, backend
        self.run = model if run is None else run  # a compiled model has a __len__ that raises
        # A constant scale keeps a step free of a transfer to the host, so that it can be captured in a CUDA graph.
        self.scale = 1024.0 if amp is torch.float16 else 1.0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE / self.scale, momentum=MOMENTUM)
        self.initial = {name: value.clone() for name, value in model.state_dict().items()}
        self.replay: Callable[[], object] | None = None
        self.loss: Tensor | None = None

    def __call__(self) -> Tensor:
        if self.replay is not None:
            self.replay()
            return self.loss
        self.optimizer.zero_grad(set_to_none=True)
        return self._work()

    def _work(self) -> Tensor:
        # Inside a graph the casts must happen at every replay, not once.
        cache = not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing()
        with fused_resnet.use_backend(self.backend):
            with torch.autocast(self.images.device.type, self.amp, enabled=self.amp is not None, cache_enabled=cache):
                loss = nn.functional.cross_entropy(self.run(self.images), self.labels)
            (loss * self.scale if self.scale != 1 else loss).backward()
        self.optimizer.step()
        self.loss = loss.detach()
        return self.loss

    def capture(self) -> None:
        """Replay one CUDA graph of the whole step from now on."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._work()
        self.replay = graph.replay

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the initial weights and running statistics, in place: a graph keeps its addresses."""
        for name, value in self.model.state_dict().items():
            value.copy_(self.initial[name])

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the last step by parameter, float64 on the CPU, unscaled."""
        return {
            name: parameter.grad.detach().double().cpu() / self.scale
            for name, parameter in self.model.named_parameters()
        }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def prepare(
    recipe: Recipe, network: Network, images: Tensor, labels: Tensor, device: torch.device, backend: str
) -> Step:
    """The step of a row, compiled or captured where the row says so."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = (network.ours() if recipe.ours else network.baseline()).train()
    model = model.to(device=device, memory_format=layout)
    inputs, targets = images.to(device).contiguous(memory_format=layout), labels.to(device)
    used = backend if recipe.ours else "auto"
    if recipe.compile_mode is None:
        step = Step(model, inputs, targets, recipe.amp, used)
        if recipe.graph:
            step.capture()
        return step
    mode = None if recipe.compile_mode == "default" else recipe.compile_mode
    step = Step(model, inputs, targets, recipe.amp, used, torch.compile(model, mode=mode, dynamic=False))
    with _quiet():  # the autotuner's account of its choices is not for the benchmark's output
        step()
    return step


def peak_memory(step: Step, device: torch.device) -> dict[str, float]:
    """`peak_MiB` of one step above what is held between steps; nothing on a CPU or of a graph, whose pool stays."""
    if device.type != "cuda" or step.replay is not None:
        return {}
    torch.cuda.synchronize(device)
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats(device)
    used = torch.cuda.memory_allocated(device)
    step()
    return {"peak_MiB": (torch.cuda.max_memory_allocated(device) - used) / 2**20}


def gold(network: Network, images: Tensor, labels: Tensor, device: torch.device) -> dict[str, object]:
    """Loss and gradients of one float64 step of the baseline from the initial weights, on the CPU."""
    model = network.baseline().train().to(device=device, dtype=torch.float64, memory_format=torch.channels_last)
    inputs = images.to(device=device, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    loss = nn.functional.cross_entropy(model(inputs), labels.to(device))
    loss.backward()
    gradients = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    return {"loss": loss.item(), "gradients": gradients}


def parity(step: Step, truth: dict[str, object]) -> dict[str, float]:
    """How far one step from the initial weights is from float64.

    Returns:
        loss_relative: of the loss; gradient_rms: over all gradients together, relative to their RMS;
        gradient_median and gradient_worst: the same of single parameters.
    """
    step.restore()
    loss = step().item()
    found, norm, per_parameter = 0.0, 0.0, []
    for name, gradient in step.gradients().items():
        expected = truth["gradients"][name]
        error, size = (gradient - expected).square().sum().item(), expected.square().sum().item()
        found, norm = found + error, norm + size
        per_parameter.append((error / size) ** 0.5 if size else error**0.5)
    errors = torch.tensor(per_parameter, dtype=torch.float64)
    return {
        "loss": loss,
        "loss_relative": abs(loss - truth["loss"]) / abs(truth["loss"]),
        "gradient_rms": (found / norm) ** 0.5,
        "gradient_median": errors.median().item(),
        "gradient_worst": errors.max().item(),
    }
