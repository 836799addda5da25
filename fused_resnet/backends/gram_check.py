"""When float32 sums of a Gram matrix will not do: one rule, for every backend whose kernels make such sums.

Of filter k, `var_k = rho^2 Q_k` is what is left of `Q_k = sum_c w_kc^2 G_cc / P` (`fused_resnet.ops.training.gram`).  A
Gram matrix of relative error u_G leaves the normalised output with a relative error of `u_G / (2 rho^2)`, dW with about
`u_G / (u rho)` times that of a stored output in precision u, which itself errs by `u / rho`.  Where some filter's
`rho^2` is below `LEAST_KEPT`, the whole unit's sums are made again in float64.

u_G is what a kernel's runs of float32 sums leave behind: about 2^-24 from float32 maps (32 products a run, rounded to
nearest), and 2^-20 at worst from 16-bit maps, of which a tensor core adds 512 pixels by truncation.  So the output errs
by at most

    float32    2^-24 / (2 * 2^-5) = 2^-20    where a stored output errs by 2^-24 / 2^-2.5 = 2^-21.5;  dW: 6 * u_G / u
    16 bits    2^-20 / (2 * 2^-8) = 2^-13    where the output is rounded by 2^-12 or more;            dW: 2^-5

with room below it, since the errors of runs are independent.  A filter of zeros has nothing that cancels, and of NaN
nothing is left to be saved: neither asks for anything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEAST_KEPT = {torch.float32: 2.0**-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-8}


def needs_float64(total: Tensor, gram: Tensor, weight: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Whether float32 sums over `count` pixels of a `dtype` map will not do for some filter: (1,) int32, 0 or 1, where
    the sums are, so that nothing has to wait for it."""
    matrix = weight.flatten(1).double()
    kept = ((matrix @ gram) * matrix).sum(1) - (matrix @ total).square() / max(count, 1)
    cancelled = matrix.square() @ gram.diagonal()
    return (kept < LEAST_KEPT[dtype] * cancelled).any().to(torch.int32).view(1)


def checked(
    total: Tensor,
    gram: Tensor,
    weight: Tensor | None,
    count: int,
    dtype: torch.dtype,
    summed_again: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """`total` and `gram`, or what is found instead where these will not do for the filters of `weight`.

    Args:
        total, gram: (C,) and (C, C) float64, of float32 sums.
        summed_again: launches a kernel that does nothing where the flag that it is given is 0, and leaves in slices
            (slices, C + 1, C) float64 the rows of gram and behind them total where it is 1.
    """
    if weight is None:
        return total.clone(), gram
    flag = needs_float64(total, gram, weight, count, dtype)
    again, wanted = summed_again(flag).sum(0), flag.bool()
    return torch.where(wanted, again[-1], total), torch.where(wanted, again[:-1], gram)
