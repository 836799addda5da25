"""Forward and backward passes put together from the training ops, against torch's modules and autograd in float64.

The order of the ops is that of DESIGN's data flow; `fused_resnet.autograd` has its own tests.
"""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fused_resnet.ops import training

TOLERANCE = 1e-9
PLAIN = ((1, 1), 1)
NO_BLOCK = (None, None, None, 1)  # below_out, skip, skip_out, skip_stride
NO_NORM = (None, None)


def conv_bn(channels: int, filters: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False).double()
    norm = nn.BatchNorm2d(filters).double()
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    return conv.to(memory_format=torch.channels_last), norm


def image(*size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)


def close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    # a gradient may be zero: a norm drops a constant added to every pixel
    errors = {name: (ours[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-3) for name in ours}
    assert all(error < TOLERANCE for error in errors.values()), errors


def expected_gradients(function, x: torch.Tensor, grad: torch.Tensor | None, **modules: nn.Module):
    """The output of `function(x)`, its gradient (drawn here unless given) and all gradients."""
    leaf = x.clone().requires_grad_()
    out = function(leaf)
    grad = torch.randn_like(out) if grad is None else grad
    out.backward(grad)
    found = {f"{name}.{key}": p.grad for name, m in modules.items() for key, p in m.named_parameters()}
    return out.detach(), grad, {"x": leaf.grad, **found}


def coefficients(norm: nn.BatchNorm2d, mean, invstd, sum_g, sum_gz, count: int):
    """a, b, c of the batch norm's backward, and the gradients of its weight and bias."""
    weight = sum_gz * invstd
    a = norm.weight * invstd
    b = -a * invstd * weight / count
    return (a, b, -a * sum_g / count - b * mean), {"weight": weight, "bias": sum_g}


def named(prefix: str, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": gradient for name, gradient in gradients.items()}


def pixels(z: torch.Tensor) -> int:
    return z.numel() // z.shape[1]


@pytest.mark.parametrize("stride", [1, 2])
def test_two_3x3_convolutions_with_a_residual(stride):
    conv1, bn1 = conv_bn(5, 8, 3, stride)
    conv2, bn2 = conv_bn(8, 8, 3)
    x = image(3, 5, 8, 7)
    residual = image(*conv1(x).shape)
    modules = OrderedDict(conv1=conv1, bn1=bn1, conv2=conv2, bn2=bn2)
    out, grad, expected = expected_gradients(
        lambda leaf: (bn2(conv2(bn1(conv1(leaf)).relu())) + residual).relu(), x, None, **modules
    )
    window1, window2 = ((stride, stride), (1, 1)), ((1, 1), (1, 1))
    with torch.no_grad():
        z1, partials = training.conv_stats(x, conv1.weight, *NO_NORM, *window1, *PLAIN)
        mean1, _, invstd1, scale1, shift1 = training.bn_finalize(partials, bn1.weight, bn1.bias, bn1.eps)
        z2, partials = training.conv_stats(z1, conv2.weight, scale1, shift1, *window2, *PLAIN)
        mean2, _, invstd2, scale2, shift2 = training.bn_finalize(partials, bn2.weight, bn2.bias, bn2.eps)
        y = training.bn_add_act(z2, scale2, shift2, residual, 1, "relu")

        g2, *sums = training.bn_act_backward(grad, y, z2, mean2)
        abc, d_bn2 = coefficients(bn2, mean2, invstd2, *sums, pixels(z2))
        d_conv2 = training.conv_wgrad(g2, z2, *abc, z1, scale1, shift1, list(conv2.weight.shape), *window2)
        below = (z1, scale1, shift1, mean1)
        g1, *sums = training.conv_dgrad(g2, z2, *abc, conv2.weight, list(z1.shape), *window2, *below, *NO_BLOCK)
        abc, d_bn1 = coefficients(bn1, mean1, invstd1, *sums, pixels(z1))
        d_conv1 = training.conv_wgrad(g1, z1, *abc, x, *NO_NORM, list(conv1.weight.shape), *window1)
        nothing = (*(None,) * 4, *NO_BLOCK)
        dx, _, _ = training.conv_dgrad(g1, z1, *abc, conv1.weight, list(x.shape), *window1, *nothing)
    close({"y": y}, {"y": out})
    weights = {"conv1.weight": d_conv1, "conv2.weight": d_conv2}
    close({"x": dx, **named("bn1", d_bn1), **named("bn2", d_bn2), **weights}, expected)


def tail_gradients(norm: nn.BatchNorm2d, matrix, sums, invstd, products, sum_g, count: int):
    """The algebra of `fused_resnet.ops.training.gram`: gradients, and what finishes the input's."""
    _, total, gram = sums
    mean = matrix @ total / count
    weight = ((matrix * products).sum(1) - mean * sum_g) * invstd
    alpha = norm.weight * invstd
    beta = -alpha * invstd * weight / count
    kappa = -alpha * sum_g / count - beta * mean
    d_weight = alpha[:, None] * products + beta[:, None] * (matrix @ gram) + torch.outer(kappa, total)
    finish = matrix.T @ (beta[:, None] * matrix), matrix.T @ kappa
    return d_weight[:, :, None, None], {"weight": weight, "bias": sum_g}, finish


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_a_1x1_convolution_that_is_never_stored_with_a_residual(offset):
    """conv 3x3, norm, ReLU, conv 1x1, norm, plus the input itself, ReLU: the end of a bottleneck."""
    conv2, bn2 = conv_bn(12, 6, 3)
    conv3, bn3 = conv_bn(6, 12, 1)
    with torch.no_grad():
        bn2.bias.add_(offset)
    x = image(2, 12, 7, 9)
    modules = OrderedDict(conv2=conv2, bn2=bn2, conv3=conv3, bn3=bn3)
    out, grad, expected = expected_gradients(
        lambda leaf: (bn3(conv3(bn2(conv2(leaf)).relu())) + leaf).relu(), x, None, **modules
    )
    window = ((1, 1), (1, 1))
    with torch.no_grad():
        z2, partials = training.conv_stats(x, conv2.weight, *NO_NORM, *window, *PLAIN)
        mean2, _, invstd2, scale2, shift2 = training.bn_finalize(partials, bn2.weight, bn2.bias, bn2.eps)
        sums = training.gram(z2, scale2, shift2, conv3.weight, 1)
        assert (sums[0] > offset - 5).all() and (sums[0] > 5).any() == (offset > 0)
        vectors = training.gram_finalize(*sums, pixels(z2), conv3.weight, bn3.weight, bn3.bias, bn3.eps)
        mean3, var3, invstd3, scale3, shift3 = vectors
        y = training.conv1x1_bn_add_act(z2, scale2, shift2, conv3.weight, scale3, shift3, x, (1, 1), 1, "relu")

        matrix = conv3.weight.flatten(1)
        read = (grad, y, z2, scale2, shift2, sums[0], scale3[:, None] * matrix, 1)
        products, sum_g, t = training.gram_products(*read)
        d_conv3, d_bn3, finish = tail_gradients(bn3, matrix, sums, invstd3, products, sum_g, pixels(z2))
        g2, *bn2_sums = training.gram_backward_finish(t, z2, scale2, shift2, sums[0], *finish, mean2)
        abc, d_bn2 = coefficients(bn2, mean2, invstd2, *bn2_sums, pixels(z2))
        d_conv2 = training.conv_wgrad(g2, z2, *abc, x, *NO_NORM, list(conv2.weight.shape), *window)
        nothing = (None,) * 5
        dx, _, _ = training.conv_dgrad(g2, z2, *abc, conv2.weight, list(x.shape), *window, *nothing, grad, y, 1)
    z3 = conv3(bn2(conv2(x)).relu()).detach()
    statistics = {"mean": z3.mean((0, 2, 3)), "var": z3.var((0, 2, 3), correction=0)}
    close({"y": y, "mean": mean3, "var": var3}, {"y": out, **statistics})
    weights = {"conv2.weight": d_conv2, "conv3.weight": d_conv3}
    close({"x": dx, **named("bn2", d_bn2), **named("bn3", d_bn3), **weights}, expected)


@pytest.mark.parametrize("constant", [False, True], ids=["batch", "constant"])
def test_a_stem(constant):
    conv, bn = conv_bn(3, 6, 7, 2)
    if constant:
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 1.5)
        bn.eval()
    x, window = image(2, 3, 19, 22), ((2, 2), (3, 3))
    pool = nn.MaxPool2d(3, 2, 1)
    out, grad, expected = expected_gradients(lambda leaf: pool(bn(conv(leaf)).relu()), x, None, conv=conv, bn=bn)
    with torch.no_grad():
        z, partials = training.conv_stats(x, conv.weight, *NO_NORM, *window, *PLAIN)
        mean, _, invstd, scale, shift = training.bn_finalize(partials, bn.weight, bn.bias, bn.eps)
        if constant:
            mean, invstd = bn.running_mean, (bn.running_var + bn.eps).rsqrt()
            scale, shift = bn.weight * invstd, bn.bias - mean * bn.weight * invstd
        y, argmax = training.bn_relu_maxpool(z, scale, shift, 3, 2, 1)
        g, *sums = training.bn_relu_maxpool_backward(grad, argmax, z, scale, shift, mean, 3, 2, 1)
        abc, d_bn = coefficients(bn, mean, invstd, *sums, pixels(z))
        abc = (abc[0], None, None) if constant else abc
        d_conv = training.conv_wgrad(g, z, *abc, x, *NO_NORM, list(conv.weight.shape), *window)
        dx, _, _ = training.conv_dgrad(g, z, *abc, conv.weight, list(x.shape), *window, *(None,) * 4, *NO_BLOCK)
    close({"y": y}, {"y": out})
    close({"x": dx, "conv.weight": d_conv, **named("bn", d_bn)}, expected)
