"""The rows of the inference benchmark: one set of weights, and every way in which the network is called with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fused_resnet
from fused_resnet._torchvision import how_to_install, import_torchvision
from fused_resnet.models import TORCHVISION_MODELS

Call = Callable[[], Tensor]
# Relative RMS of the logits against float64 above which a row has not computed the network: float32; bfloat16 or tf32.
FLOAT32_LIMIT, REDUCED_LIMIT = 1e-4, 1e-1


@dataclass(frozen=True)
class Variant:
    """One row: whose network, in which layout and precision, frozen or not, replayed from a CUDA graph or not."""

    ours: bool
    channels_last: bool = False
    frozen: bool = False
    dtype: torch.dtype = torch.float32
    amp: bool = False
    graph: bool = False

    def label(self, baseline: str) -> str:
        parts = ["fused_resnet" if self.ours else baseline]
        parts += ["frozen"] if self.frozen else []
        parts += ["channels_last"] if self.channels_last else []
        parts += ["bf16"] if self.dtype is torch.bfloat16 else []
        parts += ["amp"] if self.amp else []
        parts += ["graph"] if self.graph else []
        return " ".join(parts)

    @property
    def reduced(self) -> bool:
        """True when the row computes in less than float32, and so is expected to err by more."""
        return self.amp or self.dtype is not torch.float32


DEFAULT, CHANNELS_LAST = Variant(ours=False), Variant(ours=False, channels_last=True)


def variants(device: torch.device) -> list[Variant]:
    """The rows for a device; the two references, torchvision's default layout and channels_last, always among them."""
    rows = [
        Variant(ours=True, frozen=True),
        Variant(ours=True),
        Variant(ours=True, channels_last=True),
        DEFAULT,
        CHANNELS_LAST,
    ]
    if device.type == "cuda":
        bf16 = torch.bfloat16
        rows += [
            Variant(ours=True, frozen=True, dtype=bf16),
            Variant(ours=True, frozen=True, dtype=bf16, graph=True),
            Variant(ours=True, channels_last=True, dtype=bf16),
            Variant(ours=True, channels_last=True, dtype=bf16, graph=True),
            Variant(ours=True, channels_last=True, amp=True),
            Variant(ours=True, channels_last=True, amp=True, graph=True),
            Variant(ours=False, channels_last=True, graph=True),
            Variant(ours=False, channels_last=True, amp=True),
            Variant(ours=False, channels_last=True, amp=True, graph=True),
            Variant(ours=False, channels_last=True, dtype=bf16),
            Variant(ours=False, channels_last=True, dtype=bf16, graph=True),
        ]
    return rows


class Network:
    """A ResNet by name, built by fused_resnet and by torchvision (or its stand-in) with one state dict."""

    def __init__(self, name: str, seed: int = 0, weights: str | None = None):
        if name not in TORCHVISION_MODELS:
            raise ValueError(f"--model {name}: expected one of {', '.join(TORCHVISION_MODELS)}")
        self.name, self.builder = name, getattr(fused_resnet, name)
        self.torchvision = import_torchvision()
        self.baseline_name = "torchvision" if self.torchvision else "reference"
        self.baseline_is = (
            f"torchvision {self.torchvision.__version__}"
            if self.torchvision
            else "torchvision is not installed: the reference is ours called module by module, unfused;"
            f" `{how_to_install()}` brings the one of this torch"
        )
        torch.manual_seed(seed)
        source = self.builder(weights=weights) if weights else self._baseline_builder()()
        self.state = {key: value.clone() for key, value in source.state_dict().items()}

    def _baseline_builder(self) -> Callable[[], nn.Module]:
        return getattr(self.torchvision.models, self.name) if self.torchvision else self.builder

    def _loaded(self, builder: Callable[[], nn.Module]) -> nn.Module:
        """A network with this state, in eval mode on the CPU, made on the meta device to spare the initialisation."""
        with torch.device("meta"):
            network = builder()
        network.to_empty(device="cpu").load_state_dict(self.state)
        return network.eval()

    def calibrate(self, images: Tensor) -> None:
        """Replace the running statistics by those of `images`, averaged over training-mode passes of four or more.

        An untrained network's initial statistics (mean 0, variance 1) let its activations grow from block to block
        until the logits mean nothing; those of the photographs keep them in a trained network's range.
        """
        network = self.baseline().train()
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # a plain average over the passes
            norm.reset_running_stats()
        with torch.no_grad():
            for part in images.tensor_split(max(1, len(images) // 4)):
                network(part)
        self.state = {key: value.clone() for key, value in network.state_dict().items()}

    def baseline(self) -> nn.Module:
        """torchvision's network, or where it is absent ours called module by module; in eval mode on the CPU."""
        network = self._loaded(self._baseline_builder())
        # The trace of ours calls every convolution, norm and ReLU by itself: torchvision's forward without torchvision.
        return network if self.torchvision else torch.fx.symbolic_trace(network)

    def ours(self) -> nn.Module:
        """fused_resnet's network in eval mode on the CPU."""
        return self._loaded(self.builder)

    def gold(self, images: Tensor, device: torch.device) -> Tensor:
        """float64 logits of the baseline for `images`, (N, num_classes) on the CPU, in parts of 32 images."""
        network = self.baseline().double().to(device)
        with torch.inference_mode():
            return torch.cat([network(part.double().to(device)).cpu() for part in images.split(32)])


def captured(call: Call) -> Call:
    """The same work as the replay of one CUDA graph; the result is the graph's own output buffer."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def prepare(variant: Variant, network: Network, images: Tensor, device: torch.device) -> Call:
    """One forward pass of `variant` on `images`, as a function returning the logits; its input is in place."""
    model = (network.ours() if variant.ours else network.baseline()).to(device=device, dtype=variant.dtype)
    inputs = images.to(device=device, dtype=variant.dtype)
    if variant.channels_last:
        model, inputs = (
            model.to(memory_format=torch.channels_last),
            inputs.contiguous(memory_format=torch.channels_last),
        )
    if variant.frozen:
        model = fused_resnet.freeze(model, graph=variant.graph)

    @torch.inference_mode()
    def call() -> Tensor:
        return model(inputs)

    @torch.inference_mode()
    def call_amp() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return model(inputs)

    run = call_amp if variant.amp else call
    with torch.inference_mode():
        return captured(run) if variant.graph and not variant.frozen else run


def checked(row: dict[str, object], call: Call, gold: Tensor) -> Call:
    """`call`, warmed up; the row gets the errors of its logits."""
    row["error"] = errors(call(), gold)
    call()
    return call


def errors(logits: Tensor, gold: Tensor) -> dict[str, float]:
    """Largest absolute and relative RMS difference from float64, and the share of images with the same top class."""
    difference = logits.detach().cpu().double() - gold
    return {
        "max_abs": difference.abs().max().item(),
        "relative_rms": (difference.square().mean().sqrt() / gold.square().mean().sqrt()).item(),
        "top1_agreement": (logits.detach().cpu().argmax(1) == gold.argmax(1)).double().mean().item(),
    }
