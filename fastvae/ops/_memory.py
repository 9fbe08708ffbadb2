"""How freed memory is treated on the CPU."""

from functools import cache

import torch

__all__ = ["keep_freed_memory"]


@cache
def keep_freed_memory() -> None:
    """Let glibc reuse freed memory for the next tensor, from now on and in the whole process.

    Blocks above a threshold go back to the system when they are freed, and every later tensor of that size starts with
    page faults that can take longer than its computation: measured on two cores, they made a masked convolution of 32
    channels three times slower. Freeing one larger block raises the threshold for good, as happens sooner or later in
    any process that trains. This one is never touched, so it costs nothing; up to 64 MiB of freed memory are kept.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8, device="cpu")
