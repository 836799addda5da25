"""conv_scale_shift_act of any shape against F.conv2d, F.batch_norm, add and ReLU, one after the other."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from fused_resnet import ops
from fused_resnet.shapes import ConvShape
from tests.support.drawing import LAYOUTS


@st.composite
def shapes(draw) -> ConvShape:
    """Batch 0 to 3, odd sizes, channels of any number, stride, dilation and groups; the output has pixels."""
    groups = draw(st.sampled_from((1, 1, 2, 3, 8)))
    r, s = draw(st.sampled_from((1, 1, 3, 3, 5, 7))), draw(st.sampled_from((1, 3, 3, 2)))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 3))))
    padding = draw(st.integers(0, r // 2 + 1)), draw(st.integers(0, s // 2 + 1))
    least = (dilation[0] * (r - 1) + 1 - 2 * padding[0], dilation[1] * (s - 1) + 1 - 2 * padding[1])
    return ConvShape(
        n=draw(st.integers(0, 3)),
        c=groups * draw(st.integers(1, 9)),
        h=draw(st.integers(max(least[0], 1), max(least[0], 1) + 14)),
        w=draw(st.integers(max(least[1], 1), max(least[1], 1) + 14)),
        k=groups * draw(st.integers(1, 9)),
        r=r,
        s=s,
        stride=draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (2, 1), (3, 2)))),
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


@st.composite
def calls(draw) -> dict:
    """What to call the op with, but for the numbers."""
    shape = draw(shapes())
    return {
        "shape": shape,
        "x_layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "residual_layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "residual": draw(st.sampled_from(("none", "same", "option_a"))),
        "residual_channels": draw(st.integers(1, shape.k)),
        "residual_stride": draw(st.integers(1, 3)),
        "statistics": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "act": draw(st.sampled_from(("relu", "identity"))),
        "seed": draw(st.integers(0, 2**16)),
    }


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    # an empty batch has nothing to expand or to misalign
    return LAYOUTS[layout](x) if x.numel() else x


def residual_of(call: dict, generator: torch.Generator) -> torch.Tensor:
    shape, stride = call["shape"], call["residual_stride"]
    h, w = ((extent - 1) * stride + 1 + call["seed"] % stride for extent in (shape.p, shape.q))
    size = (shape.n, call["residual_channels"], h, w)
    if call["residual"] == "same":
        size = (shape.n, shape.k, shape.p, shape.q)
    return laid_out(torch.randn(size, generator=generator), call["residual_layout"])


def added(y: torch.Tensor, residual: torch.Tensor, stride: int) -> torch.Tensor:
    """y with option A of the residual added, written as its definition has it: channel by channel."""
    y = y.clone()
    first = (y.shape[1] - residual.shape[1]) // 2
    y[:, first : first + residual.shape[1]] += residual[:, :, ::stride, ::stride]
    return y


def run(call: dict) -> None:
    shape, generator = call["shape"], torch.Generator().manual_seed(call["seed"])
    geometry = {name: tuple(getattr(shape, name)) for name in ("stride", "padding", "dilation")} | {
        "groups": shape.groups
    }
    x = laid_out(torch.randn(shape.n, shape.c, shape.h, shape.w, generator=generator), call["x_layout"])
    weight = torch.randn(shape.k, shape.c // shape.groups, shape.r, shape.s, generator=generator) / shape.gemm_k**0.5
    mean, bias = torch.randn(2, shape.k, generator=generator)
    var, scale = 0.5 + torch.rand(2, shape.k, generator=generator)
    arguments = dict(geometry)
    if call["affine"]:
        arguments |= {"bn_weight": scale, "bn_bias": bias}
    if call["statistics"]:
        arguments |= {"running_mean": mean, "running_var": var, "eps": 1e-5}

    expected = F.conv2d(x, weight, None, **geometry)
    if call["statistics"]:
        expected = F.batch_norm(expected, mean, var, *((scale, bias) if call["affine"] else ()), eps=1e-5)
    elif call["affine"]:
        expected = expected * scale.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    if call["residual"] != "none":
        arguments["residual"] = residual_of(call, generator)
        arguments["residual_stride"] = call["residual_stride"] if call["residual"] == "option_a" else 1
        expected = added(expected, arguments["residual"], arguments["residual_stride"])
    if call["act"] == "relu":
        expected = F.relu(expected)

    y = ops.conv_scale_shift_act(x, weight, **arguments, act=call["act"])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "onednn", "reference"])
@hypothesis.settings(max_examples=300)
@hypothesis.given(call=calls())
def test_conv_of_any_shape(backend, call):
    with ops.use_backend(backend):
        run(call)


@hypothesis.settings(max_examples=100)
@hypothesis.given(
    size=st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    extra=st.integers(0, 9),
    stride=st.integers(1, 4),
)
def test_pool_and_option_a_of_any_shape(size, layout, extra, stride):
    x = laid_out(torch.randn(size), layout)
    torch.testing.assert_close(ops.global_avg_pool(x), x.sum((2, 3), keepdim=True) / (size[2] * size[3]))
    y = ops.option_a_shortcut(x, size[1] + extra, stride)
    expected = added(torch.zeros_like(y), x, stride)
    assert torch.equal(y, expected)
