"""cuDNN's own fused graphs, through its Python frontend: the nearest thing to what this package fuses.

Optional: the package `nvidia-cudnn-frontend` may not be there, and then its rows say so.  Inference is one graph of
convolution, scale, bias, add and ReLU in bfloat16; training is a convolution with the statistics of its output, in
float16, in which cuDNN has it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from fused_resnet.shapes import ConvShape

from ..subjects.convolutions import convolutions
from .rows import Row, Settings
from .timing import kernel_times

NOT_INSTALLED = "not installed: pip install nvidia-cudnn-frontend"


def rows(settings: Settings) -> list[Row]:
    """One row for each distinct 1x1 and 3x3 convolution of the first model, all at the end of a run."""
    shapes = dict.fromkeys(
        (conv.shape, conv.residual)
        for conv in convolutions(settings.models[0], settings.train_batch, settings.size)
        if conv.shape.c > 3
    )
    return [
        Row(
            "baselines",
            f"cudnn_graph/{shape.key()}{'+residual' if residual else ''}",
            lambda _, s=shape, r=residual: fused_graphs(s, r, settings),
            4,
            later=2,
        )
        for shape, residual in shapes
    ]


def fused_graphs(shape: ConvShape, residual: bool, settings: Settings) -> dict[str, object]:
    """Milliseconds of cuDNN's graphs at a convolution's shape; without the frontend a status that says so."""
    if importlib.util.find_spec("cudnn") is None:
        return {"status": NOT_INSTALLED}
    device = torch.device(settings.device)
    if device.type != "cuda":
        return {"status": "needs a CUDA device"}
    makers = {
        "conv_scale_bias_add_relu": lambda: inference_graph(shape, residual, device),
        "conv_genstats": lambda: statistics_graph(shape, device),
    }
    calls, refused = {}, {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except Exception as error:  # cuDNN has no engine for every graph
            refused[name] = {"error": " ".join(str(error).split())[:300]}
    return {
        "shape": shape.key(),
        "graphs": kernel_times(calls, device, settings.seconds / 6, settings.rounds) | refused,
    }


def _map(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(size, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)


def nhwc_strides(size: list[int]) -> list[int]:
    """Strides of (N, C, H, W) lying as NHWC; torch's own may differ in dimensions of one element."""
    _, c, h, w = size
    return [c * h * w, 1, w * c, c]


class _Graph:
    """A cuDNN graph under construction: tensors by their torch counterpart, one convolution, then whatever follows."""

    def __init__(self, shape: ConvShape, dtype: torch.dtype, device: torch.device) -> None:
        import cudnn

        self.cudnn, self.buffers, self.device = cudnn, {}, device
        self.dtype = cudnn.data_type.HALF if dtype is torch.float16 else cudnn.data_type.BFLOAT16
        self.graph = cudnn.pygraph(
            io_data_type=self.dtype,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )
        x = self.tensor(_map((shape.n, shape.c, shape.h, shape.w), dtype, device))
        weight = _map((shape.k, shape.c, shape.r, shape.s), dtype, device) * shape.gemm_k**-0.5
        geometry = {"padding": list(shape.padding), "stride": list(shape.stride), "dilation": [1, 1]}
        self.z = self.graph.conv_fprop(image=x, weight=self.tensor(weight), **geometry)

    def tensor(self, value: Tensor):
        size = list(value.shape)
        handle = self.graph.tensor(dim=size, stride=nhwc_strides(size), data_type=self._type(value))
        self.buffers[handle] = value
        return handle

    def output(self, handle, value: Tensor) -> None:
        size = list(value.shape)
        handle.set_output(True).set_dim(size).set_stride(nhwc_strides(size)).set_data_type(self._type(value))
        self.buffers[handle] = value

    def _type(self, value: Tensor):
        return self.cudnn.data_type.FLOAT if value.dtype is torch.float32 else self.dtype

    def built(self) -> Callable[[], object]:
        """The graph as a call on the current stream."""
        cudnn, graph = self.cudnn, self.graph
        graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        workspace = torch.empty(max(1, graph.get_workspace_size()), dtype=torch.uint8, device=self.device)
        handle = cudnn.create_handle()

        def call() -> None:
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
            graph.execute(self.buffers, workspace, handle=handle)

        return call


def inference_graph(shape: ConvShape, residual: bool, device: torch.device) -> Callable[[], object]:
    """`relu(conv(x) * scale + bias (+ residual))`, bfloat16."""
    made = _Graph(shape, torch.bfloat16, device)
    graph, size = made.graph, (shape.n, shape.k, shape.p, shape.q)
    vectors = [torch.rand(1, shape.k, 1, 1, device=device) for _ in range(2)]
    y = graph.bias(input=graph.scale(input=made.z, scale=made.tensor(vectors[0])), bias=made.tensor(vectors[1]))
    if residual:
        y = graph.add(a=y, b=made.tensor(_map(size, torch.bfloat16, device)))
    made.output(graph.relu(input=y), _map(size, torch.bfloat16, device))
    return made.built()


def statistics_graph(shape: ConvShape, device: torch.device) -> Callable[[], object]:
    """`z = conv(x)` with the sums of z and of its square, float16."""
    made = _Graph(shape, torch.float16, device)
    made.z.set_data_type(made.dtype)
    total, squares = made.graph.genstats(input=made.z)
    made.output(made.z, _map((shape.n, shape.k, shape.p, shape.q), torch.float16, device))
    for handle in (total, squares):
        made.output(handle, torch.empty(1, shape.k, 1, 1, device=device))
    return made.built()
