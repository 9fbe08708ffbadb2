"""The plan's own graph: operators on pixels, the values they read, and where those sit relative to the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from .axes import Layout, feature_sizes

__all__ = ["NOWHERE", "Box", "Constant", "Linear", "Look", "Map", "Operator", "Pixels", "Read", "Value", "empty_cells"]

# A cell is one pixel of one operator's result, stored as (cells, batch, *features).
# Coordinates are those of the image: an operator's tensor index minus its origin.


NOWHERE = -(10**9)  # a row or column that no operator has


@dataclass(frozen=True)
class Box:
    """Rows top..bottom-1 and columns left..right-1, in image coordinates."""

    top: int
    bottom: int
    left: int
    right: int

    def __and__(self, other: "Box") -> "Box":
        return Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    @property
    def height(self) -> int:
        return max(0, self.bottom - self.top)

    @property
    def width(self) -> int:
        return max(0, self.right - self.left)


@dataclass(eq=False)
class Operator:
    """One result per pixel of ``box``, with ``features`` numbers each."""

    node: fx.Node
    box: Box
    features: tuple[int, ...]
    dtype: torch.dtype

    @property
    def reads(self) -> list["Read"]:
        return []


@dataclass(frozen=True, eq=False)
class Value:
    """An operator's result seen through views: cropped, padded with zeros, permuted, split.

    Attributes:
        operator: whose cells hold the numbers.
        layout: of the tensor in the user's program.
        origin: tensor index (row, column) of image pixel (0, 0).
        size: rows and columns of the tensor.
        box: where the tensor shows the operator's result; it is zero elsewhere.
        views: applied in order to the operator's cells (cells, batch, *features).
        sample: an empty tensor (2, 2, *features) with the strides that the views leave.
    """

    operator: Operator
    layout: Layout
    origin: tuple[int, int]
    size: tuple[int, int]
    box: Box
    views: tuple[Callable[[Tensor], Tensor], ...]
    sample: Tensor

    def view(self, cells: Tensor) -> Tensor:
        """The cells (cells, batch, *features of the operator) as this value shows them."""
        for view in self.views:
            cells = view(cells)
        return cells

    @property
    def grid(self) -> Box:
        """All pixels of the tensor."""
        return Box(-self.origin[0], self.size[0] - self.origin[0], -self.origin[1], self.size[1] - self.origin[1])


@dataclass(frozen=True, eq=False)
class Read:
    """Pixel P of a reader needs pixel P + offset of a value.

    Attributes:
        value: what is read.
        offset: in rows and columns.
        mask: the pixels of the reader (rows, columns of its box) that read; the others get zero. None for all.
        places: instead of the offset, the row that each row of the reader's box reads, and the column that each column
            reads; ``NOWHERE`` for none.
    """

    value: Value
    offset: tuple[int, int] = (0, 0)
    mask: NDArray[np.bool_] | None = None
    places: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether every pixel of the reader does the same."""
        return self.mask is None and self.places is None

    def pairs(self, box: Box) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which pixel of the reader's box (number in raster order) reads which of the source operator's box."""
        window, source = self.value.box, self.value.operator.box
        rows, columns = self.places or (
            np.arange(box.top, box.bottom) + self.offset[0],
            np.arange(box.left, box.right) + self.offset[1],
        )
        inside = ((rows >= window.top) & (rows < window.bottom))[:, None]
        inside = inside & ((columns >= window.left) & (columns < window.right))
        if self.mask is not None:
            inside = inside & self.mask
        places = (rows - source.top)[:, None] * source.width + (columns - source.left)
        return np.flatnonzero(inside), places[inside]


@dataclass(frozen=True, eq=False)
class Look(Read):
    """Every pixel of a reader sees all pixels of a value, but depends on some only: attention.

    Attributes:
        seen: (pixels of the reader, pixels of the value's tensor) bool, filled in when it is known.
    """

    seen: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))

    @property
    def is_uniform(self) -> bool:
        return False

    def pairs(self, box: Box) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        mine, position = np.nonzero(self.seen)
        theirs = self.numbers()[position]
        return mine[theirs >= 0], theirs[theirs >= 0]

    def numbers(self) -> NDArray[np.int64]:
        """For each pixel of the value's tensor its number in the source operator's box, -1 for padding."""
        grid, window, source = self.value.grid, self.value.box, self.value.operator.box
        rows, columns = np.arange(grid.top, grid.bottom)[:, None], np.arange(grid.left, grid.right)
        inside = (rows >= window.top) & (rows < window.bottom) & (columns >= window.left) & (columns < window.right)
        return np.where(inside, (rows - source.top) * source.width + (columns - source.left), -1).ravel()


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the image, shown at every pixel of its reader.

    Attributes:
        nodes: what ``compute`` takes, evaluated from the live parameters and the condition.
        compute: gives (rows or 1, columns or 1, batch or 1, *features), rows and columns those of the reader's box;
            or a tensor without dimensions.
    """

    nodes: tuple[fx.Node, ...]
    compute: Callable[..., Tensor]


@dataclass(eq=False)
class Pixels(Operator):
    """The image itself, written by the draw."""


@dataclass(eq=False)
class Linear(Operator):
    """Sum over taps of a matrix times the features of a pixel: convolutions and linear layers.

    Attributes:
        taps: (key, read) of the taps with a non-zero weight, in the fixed order of the sum: raster order.
        weight: the node of the weight.
        bias: the node of the bias, or None.
        matrices: the weight as (taps by key, features in, features out).
        alive: which keys have a non-zero weight; the plan is good as long as these do.
        macs: multiplications per pixel of the model's own dense operator.
    """

    taps: list[tuple[int, Read]] = field(default_factory=list)
    weight: fx.Node = None  # type: ignore[assignment]
    bias: fx.Node | None = None
    matrices: Callable[[Tensor], Tensor] = lambda weight: weight
    alive: Sequence[bool] = ()
    macs: int = 0

    @property
    def reads(self) -> list[Read]:
        return [read for _, read in self.taps]

    def is_current(self, weight: Tensor) -> bool:
        """Whether the zeros of the weight are still those of the plan."""
        return self.matrices(weight).ne(0).flatten(1).any(1).tolist() == self.alive


@dataclass(eq=False)
class Map(Operator):
    """Any function of single pixels.

    Attributes:
        operands: what is read, or constant.
        function: the operator; it also takes ``out=`` where torch offers that.
        arguments: operands as (cells, batch, *features) tensors -> positional and keyword arguments.
        align: feature axes of each operand, given ones where broadcasting needs them.
        expand: whether constants must be expanded to the cells.
        spread: operands as (cells, batch, *features) tensors of zeros, but for some positive features -> a result that
            is positive where it depends on these.
    """

    operands: Sequence[Read | Constant] = ()
    function: Callable[..., Any] = torch.clone
    arguments: Callable[[list[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]] = lambda tensors: (tuple(tensors), {})
    align: Sequence[tuple[int, ...]] = ()
    expand: bool = False
    spread: Callable[[list[Tensor]], Tensor] = sum  # type: ignore[assignment]

    @property
    def reads(self) -> list[Read]:
        return [operand for operand in self.operands if isinstance(operand, Read)]


def empty_cells(layout: Layout, dtype: torch.dtype) -> Tensor:
    """Two cells of two images without memory: to find out which views are possible."""
    return torch.empty((2, 2, *feature_sizes(layout)), dtype=dtype, device="meta")
