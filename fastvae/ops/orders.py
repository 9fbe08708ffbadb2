"""Orders in which the pixels of an image are generated: (H * W, 2) rows and columns, the first pixel first."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

__all__ = ["OrderName", "check_order", "generation_order", "orientations"]

OrderName = Literal["raster", "s_curve", "hilbert", "random"]


def generation_order(
    name: OrderName,
    size: tuple[int, int],
    *,
    flip_rows: bool = False,
    flip_columns: bool = False,
    transpose: bool = False,
    seed: int | None = None,
) -> Tensor:
    """A named order of the pixels of an image.

    Args:
        name: "raster", row by row; "s_curve", the same with every second row backwards, so that each pixel follows
            a neighbour (Jain et al. 2020); "hilbert", a space-filling curve for any size, also from neighbour to
            neighbour, with one diagonal step at most; "random", a permutation drawn with ``seed``.
        size: (H, W) of the image.
        flip_rows: start from the last row.
        flip_columns: start from the last column.
        transpose: exchange the roles of rows and columns, before any flip.
        seed: for "random", and only there, an integer in [-2^63, 2^64).

    Returns:
        (H * W, 2) int64 on the CPU: the row and column of the first pixel, of the second, and so on.

    Raises:
        TypeError: if a flip or the transpose is neither True nor False.
        ValueError: for another name, a size that is not two positive integers, or a seed that is missing, unused or
            out of range.

    Example:
        >>> generation_order("s_curve", (2, 3)).tolist()
        [[0, 0], [0, 1], [0, 2], [1, 2], [1, 1], [1, 0]]
        >>> generation_order("raster", (2, 2), transpose=True).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    if name not in get_args(OrderName):
        raise ValueError(f"name must be one of {get_args(OrderName)}, got {name!r}; give any other order as an array")
    height, width = check_size(size)
    if name != "random" and seed is not None:
        raise ValueError(f'seed is for the order "random" only, got {seed!r} with {name!r}')
    if name == "random" and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ValueError(f'seed must be an integer for the order "random", got {seed!r}')
    if isinstance(seed, int) and not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be in [-2^63, 2^64), got {seed}")
    for option, value in (("flip_rows", flip_rows), ("flip_columns", flip_columns), ("transpose", transpose)):
        if not isinstance(value, bool):
            raise TypeError(f"{option} must be True or False, got {value!r}")
    rows, cols = (width, height) if transpose else (height, width)
    if name == "random":
        flat = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    elif name == "hilbert":
        flat = torch.tensor([row * cols + col for row, col in _hilbert(rows, cols)])
    else:
        grid = torch.arange(rows * cols).view(rows, cols)
        if name == "s_curve":
            grid[1::2] = grid[1::2].flip(1)
        flat = grid.flatten()
    order = torch.stack([flat // cols, flat % cols], 1)
    if transpose:
        order = order.flip(1)
    if flip_rows:
        order[:, 0] = height - 1 - order[:, 0]
    if flip_columns:
        order[:, 1] = width - 1 - order[:, 1]
    return order


def orientations(name: OrderName, size: tuple[int, int], *, seed: int | None = None) -> list[Tensor]:
    """The eight flips and transposes of a named order, for ensembles over orders.

    Example:
        >>> [order[0].tolist() for order in orientations("raster", (2, 3))][:4]
        [[0, 0], [0, 2], [1, 0], [1, 2]]
    """
    choices = (False, True)
    return [
        generation_order(name, size, flip_rows=rows, flip_columns=columns, transpose=transpose, seed=seed)
        for transpose in choices
        for rows in choices
        for columns in choices
    ]


def check_order(order: Any, size: tuple[int, int]) -> Tensor:
    """``order`` as an (H * W, 2) int64 tensor on the CPU, checked to have every pixel exactly once.

    Args:
        order: a tensor, an array or nested sequences of integers, (H * W, 2) rows and columns.
        size: (H, W) of the image.

    Raises:
        TypeError: if ``order`` is None, a name, or holds other things than integers.
        ValueError: if it has another shape, or a pixel is missing, repeated or outside the image.

    Example:
        >>> check_order([[0, 1], [0, 0]], (1, 2)).tolist()
        [[0, 1], [0, 0]]
    """
    height, width = check_size(size)
    if order is None or isinstance(order, str):
        raise TypeError(f"order must be an array of rows and columns, got {order!r}; see generation_order")
    try:
        given = torch.as_tensor(order).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"order must be an array of rows and columns, got {type(order).__name__}: {error}; see generation_order"
        ) from error
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"order must hold integers, got {given.dtype}")
    if tuple(given.shape) != (height * width, 2):
        raise ValueError(
            f"order must be ({height * width}, 2), a row and a column for each pixel of {height} x {width}, "
            f"got shape {tuple(given.shape)}"
        )
    given = given.long()
    outside = ((given < 0) | (given >= torch.tensor([height, width]))).any(1)
    if outside.any():
        raise ValueError(f"order must stay inside {height} x {width}, got pixel {tuple(given[outside][0].tolist())}")
    visits = torch.bincount(given[:, 0] * width + given[:, 1], minlength=height * width)
    if (visits != 1).any():
        wrong = int((visits != 1).nonzero()[0])
        raise ValueError(
            f"order must have every pixel exactly once, got pixel {divmod(wrong, width)} {int(visits[wrong])} times"
        )
    return given


def check_size(size: Any) -> tuple[int, int]:
    """(H, W) as it came, checked to be two positive integers."""
    try:
        height, width = size
    except (TypeError, ValueError):
        raise ValueError(f"size must be (H, W), got {size!r}") from None
    for number in (height, width):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"size must be two positive integers (H, W), got {size!r}")
    return height, width


def _hilbert(height: int, width: int) -> Iterator[tuple[int, int]]:
    """A Hilbert curve over a rectangle of any size, on powers of two the usual one (after Cerveny's generalisation)."""
    if width >= height:
        yield from _curve((0, 0), (0, width), (height, 0))
    else:
        yield from _curve((0, 0), (height, 0), (0, width))


def _curve(start: tuple[int, int], along: tuple[int, int], across: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Fill the rectangle that two axis-parallel vectors span at ``start``, and end at the far end of ``along``."""
    (row, col), length, breadth = start, abs(sum(along)), abs(sum(across))
    step, side = _unit(along), _unit(across)
    if breadth == 1:
        yield from ((row + i * step[0], col + i * step[1]) for i in range(length))
    elif length == 1:
        yield from ((row + i * side[0], col + i * side[1]) for i in range(breadth))
    elif 2 * length > 3 * breadth:  # too long: two halves one after the other
        half = _times(step, _even(length // 2, limit=length > 2))
        yield from _curve(start, half, across)
        yield from _curve(_plus(start, half), _minus(along, half), across)
    else:  # up, along, and down again
        half, rise = _times(step, length // 2), _times(side, _even(breadth // 2, limit=breadth > 2))
        yield from _curve(start, rise, half)
        yield from _curve(_plus(start, rise), along, _minus(across, rise))
        last = _plus(_plus(start, _minus(along, step)), _minus(rise, side))
        yield from _curve(last, _times(rise, -1), _times(_minus(along, half), -1))


def _even(number: int, *, limit: bool) -> int:
    return number + 1 if number % 2 and limit else number  # odd pieces would end in a corner that has no way on


def _unit(vector: tuple[int, int]) -> tuple[int, int]:
    return tuple((number > 0) - (number < 0) for number in vector)  # type: ignore[return-value]


def _times(vector: tuple[int, int], factor: int) -> tuple[int, int]:
    return vector[0] * factor, vector[1] * factor


def _plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _minus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] - b[0], a[1] - b[1]
