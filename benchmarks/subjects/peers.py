"""Other ways to make the same network fast, measured with `--peers`: float32, same threads, tuned for latency.

A peer that is not installed, does not apply to the device or fails is a row that says so.
"""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """A peer's row: the module it needs, the settings it is given, and `make(model, images, device, threads)`."""

    label: str
    module: str
    settings: str
    make: Callable[[nn.Module, Tensor, torch.device, int], Call]
    devices: tuple[str, ...] = ("cpu", "cuda")

    def absent_reason(self, device: torch.device) -> str | None:
        """Why the row cannot be measured here, or None."""
        if importlib.util.find_spec(self.module) is None:
            return "not installed"
        return None if device.type in self.devices else f"does not run on {device.type}"


def compiled(model: nn.Module, images: Tensor, device: torch.device, threads: int) -> Call:
    """torch.compile with max-autotune and freezing, channels_last.  `threads` are PyTorch's own, set by the caller."""
    import torch._inductor.config as inductor

    model = model.to(device=device, memory_format=torch.channels_last)
    inputs = images.to(device).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled_model = torch.compile(model, mode="max-autotune", dynamic=False)

    def call() -> Tensor:
        with torch.no_grad():
            return compiled_model(inputs)

    # Compiles, and decides about freezing; the autotuner's account of its choices is not for the benchmark's output.
    with inductor.patch(freezing=True), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        call()
    return call


def exported(model: nn.Module, images: Tensor) -> bytes:
    """The network as an ONNX file's content, with the batch of `images`."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the TorchScript exporter needs nothing but torch and says that it is the older one
        torch.onnx.export(model, (images,), buffer, input_names=["images"], output_names=["logits"], dynamo=False)
    return buffer.getvalue()


def onnx_runtime(model: nn.Module, images: Tensor, device: torch.device, threads: int) -> Call:
    """An ONNX Runtime session: every graph optimisation, `threads` threads within an operator, CPU or CUDA provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(
            f"this onnxruntime has no {provider}; it has {', '.join(onnxruntime.get_available_providers())}"
        )
    session = onnxruntime.InferenceSession(exported(model, images), options, providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError(f"onnxruntime could not start its {provider} and would run on {session.get_providers()[0]}")
    if device.type == "cpu":
        feed = {"images": images.numpy()}
        return lambda: torch.from_numpy(session.run(None, feed)[0])
    # Input and output stay on the GPU, as the other rows' do; the session waits for its own work before it returns.
    inputs = images.to(device).contiguous()
    logits = torch.empty(tuple(session.get_outputs()[0].shape), device=device)
    binding, index = session.io_binding(), device.index or 0
    binding.bind_input("images", "cuda", index, numpy.float32, tuple(inputs.shape), inputs.data_ptr())
    binding.bind_output("logits", "cuda", index, numpy.float32, tuple(logits.shape), logits.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return logits

    return call


def openvino(model: nn.Module, images: Tensor, device: torch.device, threads: int) -> Call:
    """An OpenVINO model compiled for this batch: float32 precision hint, latency hint, `threads` threads."""
    import openvino as ov

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = ov.convert_model(model, example_input=images)
    converted.reshape(list(images.shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    feed = {0: images.numpy()}
    return lambda: torch.from_numpy(request.infer(feed)[0])


PEERS = (
    Peer("torch.compile", "torch", "mode=max-autotune, freezing, channels_last, dynamic=False", compiled),
    Peer(
        "ONNX Runtime",
        "onnxruntime",
        "all graph optimisations, intra-op threads as PyTorch's, sequential",
        onnx_runtime,
    ),
    Peer(
        "OpenVINO",
        "openvino",
        "INFERENCE_PRECISION_HINT=f32, PERFORMANCE_HINT=LATENCY, threads as PyTorch's",
        openvino,
        ("cpu",),
    ),
)
