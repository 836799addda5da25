"""The convolutions of ResNet-18 and ResNet-50 as shapes, with what their epilogue does: no model is built."""

from __future__ import annotations

from dataclasses import dataclass

from fused_resnet.shapes import ConvShape

_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
MODELS = tuple(_DEPTHS)


@dataclass(frozen=True)
class Convolution:
    """One convolution: where it is first met, its shape, whether a residual is added and a ReLU follows."""

    name: str
    shape: ConvShape
    residual: bool = False
    relu: bool = True


def convolutions(model: str, batch: int, size: int = 224) -> list[Convolution]:
    """The distinct convolutions of `model` on `batch` images of `size` x `size` pixels, in the order they run."""
    stem = Convolution("conv1", ConvShape(batch, 3, size, size, 64, 7, 7, (2, 2), (3, 3)))
    found = [stem]
    channels, extent = 64, (stem.shape.p - 1) // 2 + 1
    for stage, depth in enumerate(_DEPTHS[model]):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            block = _basic if model == "resnet18" else _bottleneck
            found += block(f"layer{stage + 1}.{index}", batch, channels, 64 << stage, extent, stride)
            channels, extent = found[-1].shape.k, -(-extent // stride)
    seen: dict[tuple, Convolution] = {}
    for convolution in found:
        seen.setdefault((convolution.shape, convolution.residual, convolution.relu), convolution)
    return list(seen.values())


def _basic(name: str, batch: int, channels: int, planes: int, extent: int, stride: int) -> list[Convolution]:
    after = -(-extent // stride)
    convs = [Convolution(f"{name}.conv1", _square(batch, channels, extent, planes, 3, stride))]
    if stride != 1 or channels != planes:
        convs.append(Convolution(f"{name}.downsample", _square(batch, channels, extent, planes, 1, stride), relu=False))
    return [*convs, Convolution(f"{name}.conv2", _square(batch, planes, after, planes, 3, 1), residual=True)]


def _bottleneck(name: str, batch: int, channels: int, planes: int, extent: int, stride: int) -> list[Convolution]:
    after, out = -(-extent // stride), 4 * planes
    convs = [
        Convolution(f"{name}.conv1", _square(batch, channels, extent, planes, 1, 1)),
        Convolution(f"{name}.conv2", _square(batch, planes, extent, planes, 3, stride)),
    ]
    if stride != 1 or channels != out:
        convs.append(Convolution(f"{name}.downsample", _square(batch, channels, extent, out, 1, stride), relu=False))
    return [*convs, Convolution(f"{name}.conv3", _square(batch, planes, after, out, 1, 1), residual=True)]


def _square(batch: int, c: int, extent: int, k: int, kernel: int, stride: int) -> ConvShape:
    return ConvShape(batch, c, extent, extent, k, kernel, kernel, (stride, stride), (kernel // 2, kernel // 2))
