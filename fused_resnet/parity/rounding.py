"""What rounding does to a computation in plain PyTorch, sampled: it is run again and again, every rounding disturbed.

One run's error says little about how large such errors are: it may be nearly zero by luck.  So each operation's result
gets a random error of the size that its own rounding has, and what comes out at the end, over several runs, is a sample
of what other orders of the same arithmetic might have given (Parker, Pierce and Eggert 2000, "Monte Carlo Arithmetic").

A rounding's error is taken to be normal.  A sum of n terms is rounded n times, at its partial sums s_j: over all orders
of the terms, with y their sum and Q the sum of their squares, `sum_j E s_j^2` is at most `n (y^2 / 3 + Q / 2)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

RMS = 0.41  # of one rounding relative to the value, in units of eps / 2: over all mantissas
RUNS = 12

# What computes and is not named here rounds its result once.
_SUMS = {
    "_adaptive_avg_pool2d", "addmm", "avg_pool2d", "baddbmm", "bmm", "convolution", "convolution_backward", "cumsum",
    "dot", "linear", "mean", "mm", "mv", "sum",
}  # fmt: skip
_AVERAGES = {"_adaptive_avg_pool2d", "avg_pool2d", "mean"}
# What gives back values that it read, or that no rounding made.
_EXACT = {
    "_local_scalar_dense", "_reshape_copy", "_unsafe_view", "abs", "amax", "amin", "arange", "cat", "clamp",
    "clamp_max", "clamp_min", "clone", "constant_pad_nd", "detach", "empty", "empty_like", "empty_strided", "expand",
    "expand_copy", "fill", "flip", "full", "full_like", "gather", "hardtanh", "im2col", "index", "index_put",
    "index_select", "lift_fresh", "masked_fill", "masked_scatter", "masked_select", "max", "max_pool2d_with_indices",
    "maximum", "min", "minimum", "nan_to_num", "narrow_copy", "neg", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "ones", "ones_like", "permute_copy", "relu", "repeat", "roll", "scalar_tensor", "scatter",
    "select_backward", "select_copy", "select_scatter", "sign", "slice_backward", "slice_copy", "slice_scatter",
    "sort", "squeeze_copy", "stack", "threshold_backward", "topk", "tril", "triu", "unbind_copy", "unsafe_chunk",
    "unsafe_split", "unsqueeze_copy", "view_copy", "where", "zero", "zeros", "zeros_like",
}  # fmt: skip
_COPIES = {"_to_copy": 0, "copy": 1}  # the argument that is copied


def _addcmul(total: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    return total + (left * right if value == 1 else value * left * right)


def _var_mean(x: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False):
    dim = list(range(x.dim())) if not dim else dim
    mean = x.mean(dim, keepdim=True)
    squares = (x - mean).square().sum(dim, keepdim=keepdim)
    count = x.numel() // max(mean.numel(), 1)
    return squares / max(count - (1 if correction is None else correction), 0), mean if keepdim else mean.squeeze(dim)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With one factor and one summand a channel, whose roundings all of its pixels share: as ATen's CPU kernels do.

    torch's own decomposition rounds pixel by pixel alone, and says that a channel's mean hardly errs.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if training:
        over = [dim for dim in range(x.dim()) if dim != 1]
        var, mean = _var_mean(wide, over, correction=0)
        count = x.numel() / x.shape[1]
        for running, new in ((running_mean, mean), (running_var, var * (count / max(count - 1, 1)))):
            if running is not None:
                running.copy_(momentum * new + (1 - momentum) * running)
    else:
        mean, var = running_mean.to(wide.dtype), running_var.to(wide.dtype)
    invstd = (var + eps).rsqrt()
    factor = invstd if weight is None else invstd * weight
    summand = -mean * factor if bias is None else bias - mean * factor
    a_channel = (-1, *[1] * (x.dim() - 2))
    y = (wide * factor.view(a_channel) + summand.view(a_channel)).to(x.dtype)
    return (y, mean, invstd) if training else (y, x.new_zeros(0), x.new_zeros(0))


def _with_reserve(*arguments: Any, **keywords: Any) -> tuple[Tensor, ...]:
    y, *saved = _batch_norm(*arguments, **keywords)
    return y, *saved, y.new_zeros(0, dtype=torch.uint8)


def _batch_norms(aten: Any) -> dict[Any, Callable]:
    """The operations that F.batch_norm becomes, by device and release."""
    legit = aten._native_batch_norm_legit
    return {
        aten.native_batch_norm.default: _batch_norm,
        aten.cudnn_batch_norm.default: _with_reserve,
        legit.default: _batch_norm,
        legit.no_stats: lambda x, weight, bias, *rest: _batch_norm(x, weight, bias, None, None, *rest),
        aten._native_batch_norm_legit_no_training.default: lambda *given: _batch_norm(*given[:5], False, *given[5:]),
        aten._batch_norm_with_update.default: lambda *given: _with_reserve(*given[:5], True, *given[5:]),
        aten._batch_norm_no_update.default: lambda *given: _with_reserve(*given[:5], False, *given[5:]),
    }


def _composed() -> dict[Any, Callable]:
    """Operations that round on the way to their result, as the simpler ones that they consist of."""
    aten = torch.ops.aten
    names = (
        "native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward", "_softmax", "_log_softmax",
    )  # fmt: skip
    found = torch._decomp.get_decompositions([getattr(aten, name) for name in names])
    found |= _batch_norms(aten)
    return found | {
        aten.addcmul.default: _addcmul,
        aten.var_mean.correction: _var_mean,
        aten.var.correction: lambda *arguments, **keywords: _var_mean(*arguments, **keywords)[0],
    }


class Rounding(TorchDispatchMode):
    """While it is on, every operation's result gets one more rounding error, drawn from `seed`.

    `sizes` remembers, sum by sum, how large their errors are: one list for all runs of a computation finds them once.
    """

    _rounded_inside: dict[Any, Callable] | None = None

    def __init__(self, seed: int, sizes: list[list[Tensor]] | None = None) -> None:
        super().__init__()
        if Rounding._rounded_inside is None:
            Rounding._rounded_inside = _composed()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._sizes = [] if sizes is None else sizes
        self._sums = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inside = self._rounded_inside.get(func)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in _SUMS:
            return self._sum(name, func, args, kwargs)
        result = func(*args, **kwargs)
        if name in _COPIES:
            rounds = _narrows(args[_COPIES[name]], result)
        else:
            rounds = name not in _EXACT and not func.is_view and _reads_floats(args)
        if rounds:
            for tensor in _floats(result):
                self._disturb(tensor, None)
        return result

    def _sum(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        at, self._sums = self._sums, self._sums + 1
        squares = _squares(func, args, kwargs) if at == len(self._sizes) else None
        result = func(*args, **kwargs)
        if squares is not None:
            self._sizes.append([
                _size_of_sum(tensor, square, _terms(name, args, tensor), name in _AVERAGES)
                for tensor, square in zip(_floats(result), squares, strict=True)
            ])  # fmt: skip
        for tensor, size in zip(_floats(result), self._sizes[at], strict=True):
            self._disturb(tensor, size)
        return result

    def _disturb(self, tensor: Tensor, size: Tensor | None) -> None:
        """Adds an error of RMS `size`, or of one rounding, to what is finite."""
        device = tensor.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        error = torch.empty_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        error.normal_(0, _unit(tensor.dtype) if size is None else 1, generator=self._generators[device])
        if tensor.dtype == error.dtype and tensor.sum().isfinite():
            tensor.addcmul_(error, tensor if size is None else size)
        else:
            error *= tensor if size is None else size
            tensor.add_(error.nan_to_num_(0, 0, 0).to(tensor.dtype))


def _unit(dtype: torch.dtype) -> float:
    return RMS * torch.finfo(dtype).eps / 2


def _floats(result: Any) -> list[Tensor]:
    tensors = result if isinstance(result, tuple | list) else (result,)
    return [one for one in tensors if isinstance(one, Tensor) and one.is_floating_point() and one.numel()]


def _reads_floats(args: tuple) -> bool:
    return any(_floats(arg) for arg in args)


def _narrows(source: Any, result: Tensor) -> bool:
    floats = isinstance(source, Tensor) and source.is_floating_point() and result.is_floating_point()
    return floats and torch.finfo(result.dtype).eps > torch.finfo(source.dtype).eps


def _squares(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The operation's results with every operand squared, wide: sums of the squared terms."""

    def squared(tensor: Tensor) -> Tensor:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        return tensor.to(wide).square() if tensor.is_floating_point() else tensor

    keywords = {key: value for key, value in kwargs.items() if key != "dtype"}
    return _floats(func(*tree_map_only(Tensor, squared, args), **keywords))


def _size_of_sum(result: Tensor, squares: Tensor, terms: float, average: bool) -> Tensor:
    """The RMS of the error of a sum, or of an average, of so many terms, which is added up in float32 at least."""
    squares = squares.double() / terms if average else squares.double()
    square = result.double().square()
    inside = _unit(torch.promote_types(result.dtype, torch.float32)) ** 2 * terms * (square / 3 + squares / 2)
    return (inside + _unit(result.dtype) ** 2 * square).sqrt().to(torch.promote_types(result.dtype, torch.float32))


def _terms(name: str, args: tuple, result: Tensor) -> float:
    """How many terms each element of a sum's result adds up."""
    first = args[0]
    if name in ("sum", "cumsum", *_AVERAGES):
        return max(first.numel() / result.numel(), 1)
    if name in ("mm", "bmm", "mv", "dot", "linear"):
        return first.shape[-1]
    if name in ("addmm", "baddbmm"):
        return args[1].shape[-1] + 1
    weight = args[2] if name == "convolution_backward" else args[1]
    if name == "convolution":
        return weight[0].numel() + 1
    # a gradient of a convolution: of its input, of its weight or its bias
    of_input, of_weight = weight.numel() / weight.shape[1], first.numel() / first.shape[1]
    if result.shape != args[1].shape:
        return of_weight
    return max(of_input, of_weight) if result.shape == weight.shape else of_input


def sampled(function: Callable[[], Any], runs: int = RUNS, seed: int = 0) -> Iterator[Any]:
    """What `function` returns in each of `runs` runs with every rounding disturbed.

    Args:
        function: plain PyTorch that does the same operations at every call, on any device and in any floating dtype.
        runs: a dozen where an output has few elements; large maps can do with fewer.
        seed: of the disturbances.

    Raises:
        ValueError: runs is less than 2.
    """
    if runs < 2:
        raise ValueError(f"rounding is sampled in at least 2 runs, got {runs}")
    sizes: list[list[Tensor]] = []
    for run in range(runs):
        with Rounding(1_000_003 * seed + run, sizes):
            result = function()
        yield result
