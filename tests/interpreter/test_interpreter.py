"""This folder really runs under the interpreter: a compiled kernel would need a GPU."""

import torch
import triton
import triton.language as tl


@triton.jit
def _add_one(
    # pointers
    x_ptr,
    y_ptr,
    # sizes
    size,
    # meta
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + index, tl.load(x_ptr + index, mask=index < size) + 1, mask=index < size)


def test_a_kernel_runs_on_cpu_tensors() -> None:
    x, y = torch.randn(37), torch.full((37,), float("nan"))
    _add_one[(3,)](x_ptr=x, y_ptr=y, size=37, BLOCK=16)
    torch.testing.assert_close(y, x + 1)
