"""The modules that a frozen model is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import ops
from ..backends import onednn
from ..backends.reference import scale_and_shift
from ..ops import checks, dispatch

# Well below the largest float32 (3.4e38): room for what rounding adds to a bound.
_LARGEST = 1e37

# Packed copies of its filters that a convolution keeps: a batch that does not divide evenly comes in two sizes.
_PACKED_SIZES = 2


class SafeRange:
    """An upper bound on the magnitude of the feature map at hand, which proves that no Inf or NaN can arise from it.

    oneDNN's ReLU turns NaN into 0.  It may be used only where a NaN is impossible: where the input is finite and every
    sum on the way stays below float32's range.  The bound follows from the filters' L1 norms without looking at the
    data, and is measured anew only when it has grown too large to be of use.
    """

    def __init__(self) -> None:
        self.bound = math.inf

    def advance(self, x: Tensor, branch: list[FrozenConv], shortcut: list[FrozenConv]) -> bool:
        """Whether `x` goes through both chains, and their sum, without an overflow; the bound becomes the sum's."""
        after = _through(self.bound, branch) + _through(self.bound, shortcut)
        if not after < _LARGEST:
            self.bound = _magnitude(x)
            after = _through(self.bound, branch) + _through(self.bound, shortcut)
        self.bound = after
        return after < _LARGEST


def _through(bound: float, convs: list[FrozenConv]) -> float:
    for conv in convs:
        gain, offset = conv.norms()
        bound = bound * gain + offset
    return bound


def _magnitude(x: Tensor) -> float:
    """The largest absolute value; NaN when there is one, 0 for no values."""
    if x.numel() == 0:
        return 0.0
    # Two reductions: torch's aminmax runs forty times slower over channels_last.
    return float(torch.maximum(-x.amin(), x.amax()))


class FrozenConv(nn.Module):
    """A convolution with its batch norm folded in: `act(conv(x, weight) + bias + shortcut(residual))`.

    Folding is done in float64 and rounded once: `weight` (K, C / groups, R, S) to the source's dtype, in channels_last;
    `bias` (K,) to float32, or float64 for float64.
    """

    @torch.no_grad()
    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        wide = torch.float64
        scale, shift = scale_and_shift(
            conv.out_channels,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            wide,
            conv.weight.device,
        )
        weight = conv.weight.to(wide) * scale.view(-1, 1, 1, 1)
        dtype = conv.weight.dtype
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", shift.to(torch.promote_types(dtype, torch.float32)))
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self._packed: dict[torch.Size, Tensor] = {}
        self._norms: tuple[float, float] | None = None

    def norms(self) -> tuple[float, float]:
        """The largest L1 norm of a filter, by which a magnitude can grow, and the largest magnitude of a bias."""
        if self._norms is None:
            gain = self.weight.abs().sum((1, 2, 3), dtype=torch.float64).amax()
            self._norms = float(gain), float(self.bias.abs().amax())
        return self._norms

    def packs(self, x: Tensor) -> bool:
        """Whether oneDNN's packed primitive is the backend for `x`."""
        return (
            not (torch.compiler.is_compiling() or torch.jit.is_tracing())
            and type(x) in (Tensor, nn.Parameter)
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 4
            and x.shape[0] > 0
            and not torch.is_autocast_enabled("cpu")
            and dispatch.choose("conv_scale_shift_act", x, weight=self.weight)[0] == "onednn"
        )

    def forward(self, x: Tensor, act: str, residual: Tensor | None = None, residual_stride: int = 1) -> Tensor:
        """Through the op, on whatever backend it picks."""
        return ops.conv_scale_shift_act(
            x,
            self.weight,
            bn_bias=self.bias,
            residual=residual,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            residual_stride=residual_stride,
            act=act,
        )

    def packed(
        self,
        x: Tensor,
        act: str,
        nan_free: bool,
        residual: Tensor | None = None,
        residual_stride: int = 1,
        overwrite: bool = False,
    ) -> Tensor:
        """Through oneDNN with packed filters.

        `nan_free` promises that no NaN can arise here, see `SafeRange`; `overwrite` gives the residual's memory away.
        """
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        packed = self._packed.get(x.shape)
        if packed is None:
            self._check(x)
            packed = onednn.pack(self.weight, x.shape, *geometry)
            self._packed = {**dict(list(self._packed.items())[1 - _PACKED_SIZES :]), x.shape: packed}
        dispatch.note_backend("conv_scale_shift_act", "onednn", "filters folded and packed")
        return onednn.packed_conv(
            x, packed, self._buffers["bias"], *geometry, residual, residual_stride, act, nan_free, overwrite
        )

    def _check(self, x: Tensor) -> None:
        """The op's own checks, once for each size."""
        checks.convolution(
            "frozen convolution", x, self.weight, *(self.stride, self.padding, self.dilation, self.groups)
        )

    def _apply(self, fn, recurse: bool = True) -> FrozenConv:
        self._packed, self._norms = {}, None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments) -> None:
        self._packed, self._norms = {}, None
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict:
        # oneDNN's packed filters can be neither copied nor pickled; they are made again at the next call.
        return {**self.__dict__, "_packed": {}}

    def extra_repr(self) -> str:
        k, c, r, s = self.weight.shape
        return f"{c * self.groups}, {k}, kernel_size={(r, s)}, stride={self.stride}, {self.weight.dtype}"


class FrozenStem(nn.Module):
    """Convolution, ReLU and pooling; `pool` may be None."""

    def __init__(self, conv: FrozenConv, pool: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool

    def forward(self, x: Tensor, known: SafeRange | None) -> Tensor:
        """`known` is given when the convolution goes through `FrozenConv.packed`."""
        dispatch.note_path(self, None)
        if known is None:
            y = self.conv(x, "relu")
        else:
            y = self.conv.packed(x, "relu", known.advance(x, [self.conv], []))
        return y if self.pool is None else self.pool(y)


class FrozenBlock(nn.Module):
    """A residual block of two or three frozen convolutions with its shortcut.

    Args:
        convs: the residual branch.
        downsample: the projection on the shortcut, or None for an identity or an option-A shortcut.
        residual_stride: the option-A shortcut's stride.
    """

    def __init__(self, convs: list[FrozenConv], downsample: FrozenConv | None, residual_stride: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.downsample = downsample
        self.residual_stride = residual_stride
        self._bottleneck = self._is_bottleneck()
        if self._bottleneck:
            # the scale of folded filters
            self.register_buffer("ones", torch.ones_like(convs[-1].bias), persistent=False)

    def _is_bottleneck(self) -> bool:
        """Whether `ops.bottleneck_inference` computes what the convolutions compute one by one."""
        convs, downsample = self.convs, self.downsample
        if len(convs) != 3 or self.residual_stride != 1 or any(conv.groups != 1 for conv in convs):
            return False
        stride = convs[1].stride
        windows = [(conv.weight.shape[2], conv.stride, conv.padding) for conv in convs]
        plain = (1, (1, 1), (0, 0))
        if downsample is None:  # option A at stride 1 adds channels
            shortcut = convs[0].weight.shape[1] == convs[2].weight.shape[0]
        else:
            window = (downsample.weight.shape[2:], downsample.stride, downsample.padding)
            shortcut = window == ((1, 1), stride, (0, 0))
        middle = windows[1] == (3, (stride[0],) * 2, (1, 1)) and convs[1].dilation == (1, 1)
        return windows[0] == windows[2] == plain and middle and shortcut

    def _whole(self, x: Tensor) -> Tensor | None:
        """The block as one op, where the backend asked for by name has it; else None."""
        if not self._bottleneck or torch.compiler.is_compiling():
            return None
        stride, projected = self.convs[1].stride, self.downsample is not None
        deciding = {"weight": self.convs[1].weight, "stride": stride, "projected": projected}
        if not dispatch.taken_by_name("bottleneck_inference", x, **deciding):
            return None
        arguments = [t for conv in self.convs for t in (conv.weight, self.ones[: len(conv.bias)], conv.bias)]
        shortcut = (self.downsample.weight, self.ones, self.downsample.bias) if projected else (None,) * 3
        return ops.bottleneck_inference(x, *arguments, *shortcut, stride[0])

    def forward(self, x: Tensor, known: SafeRange | None, overwrite: bool = False) -> Tensor:
        """`known` is given when the convolutions go through `FrozenConv.packed`, which may then overwrite x."""
        dispatch.note_path(self, None)
        *inner, last = self.convs
        downsample = self.downsample
        if known is None:
            whole = self._whole(x)
            if whole is not None:
                return whole
            residual = x if downsample is None else downsample(x, "identity")
            for conv in inner:
                x = conv(x, "relu")
            return last(x, "relu", residual, self.residual_stride)
        nan_free = known.advance(x, [*inner, last], [] if downsample is None else [downsample])
        residual = x if downsample is None else downsample.packed(x, "identity", nan_free)
        for conv in inner:
            x = conv.packed(x, "relu", nan_free)
        overwrite = overwrite or downsample is not None
        return last.packed(x, "relu", nan_free, residual, self.residual_stride, overwrite)
