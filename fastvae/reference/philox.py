"""The definition of our random numbers: the counter-based generator Philox 4x32-10."""

import torch
from torch import Tensor

__all__ = ["MASK", "MULTIPLIERS", "WEYL", "philox"]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox(seed: int, ids: Tensor, rows: Tensor, width: int, tag: int = 0) -> Tensor:
    """32-bit words addressed by (seed, id, row, column), as int64 in [0, 2^32).

    The counter is (column // 4, row, id, tag), the key is the seed; column % 4 selects one of the four output words.
    Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Args:
        seed: an integer in [0, 2^64).
        ids: (N,) int64 in [0, 2^32).
        rows: (R,) int64 in [0, 2^32).
        width: the number of columns.
        tag: an integer in [0, 2^32).

    Returns:
        (N, R, width) int64.
    """
    num_blocks = -(-width // 4)
    shape = (ids.shape[0], rows.shape[0], num_blocks)
    c0 = torch.arange(num_blocks, device=ids.device).expand(shape).contiguous()
    c1 = rows[None, :, None].expand(shape).contiguous()
    c2 = ids[:, None, None].expand(shape).contiguous()
    c3 = torch.full(shape, tag, dtype=torch.int64, device=ids.device)
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        # int64 products wrap modulo 2^64, so both halves are right after masking
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_and_(MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(MASK), p0.bitwise_and_(MASK)
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1).reshape(shape[0], shape[1], 4 * num_blocks)[..., :width]
