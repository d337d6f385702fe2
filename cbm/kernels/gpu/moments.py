"""Features of half precision near their mean, and the sums that say how far from it: one pass over them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbm.kernels.backend import launched_on

_ROWS, _STEP, _COLUMNS = 256, 32, 128  # of a program, at a time, and features


@triton.jit(do_not_specialize=["N"])
def centre_kernel(
    X, NEAR, OUT, TOTAL, SHIFT, N, D, x_stride, ROWS: tl.constexpr, STEP: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """ROWS rows of BD features per program: what they are beside NEAR, rounded, and the sums of both."""
    block = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    column_mask = columns < D
    near = tl.load(NEAR + columns, mask=column_mask, other=0.0).to(tl.float32)
    total, shift = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for start in range(0, ROWS, STEP):
        rows = block * ROWS + start + tl.arange(0, STEP)
        mask = (rows < N)[:, None] & column_mask[None, :]
        x = tl.load(X + rows[:, None] * x_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        centred = tl.where(mask, x - near[None, :], 0.0).to(OUT.dtype.element_ty)
        tl.store(OUT + rows[:, None] * D + columns[None, :], centred, mask=mask)
        total += tl.sum(x, 0)
        shift += tl.sum(centred.to(tl.float32), 0)
    tl.store(TOTAL + block * D + columns, total, mask=column_mask)
    tl.store(SHIFT + block * D + columns, shift, mask=column_mask)


def centre(x: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``x - near`` [N, D] in the dtype of x, and the sums over the rows of x and of that, [D] in float64."""
    n, d = x.shape
    out = torch.empty(n, d, dtype=x.dtype, device=x.device)
    blocks = triton.cdiv(n, _ROWS)
    sums = torch.empty(2, blocks, d, dtype=torch.float32, device=x.device)
    x = x if x.stride(1) == 1 else x.contiguous()
    with launched_on(x):
        centre_kernel[(blocks, triton.cdiv(d, _COLUMNS))](
            x, near.contiguous(), out, *sums, n, d, x.stride(0), _ROWS, _STEP, _COLUMNS
        )
    return out, *sums.sum(1, dtype=torch.float64)
