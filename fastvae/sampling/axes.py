"""Where batch, rows, columns and features sit in the dimensions of a traced tensor."""

from collections.abc import Sequence

__all__ = ["Dim", "Layout", "feature_sizes", "image_layout", "is_feature", "regroup", "simplify"]

# A dimension is a sequence of atoms, slowest first: "n" (batch), "h", "w" (rows and columns) or the size of a feature
# axis. Views only split and join dimensions, so atoms survive them: (N, C, H, W) -> (N * H * W, C) is nhw, C.
Atom = str | int
Dim = tuple[Atom, ...]
Layout = tuple[Dim, ...]


def image_layout(channels: int) -> Layout:
    """The layout of (N, C, H, W)."""
    return (("n",), (channels,), ("h",), ("w",))


def is_feature(dim: Dim) -> bool:
    """Whether a dimension holds features only."""
    return all(isinstance(atom, int) for atom in dim)


def feature_sizes(layout: Layout) -> tuple[int, ...]:
    """Sizes of the feature axes in order: a cell of the layout is stored as (cells, batch, *feature_sizes)."""
    return tuple(atom for dim in layout for atom in dim if isinstance(atom, int))


def simplify(atoms: Sequence[Atom]) -> Dim:
    """A dimension with neighbouring feature axes joined and those of size one dropped."""
    dim: list[Atom] = []
    for atom in atoms:
        last = dim[-1] if dim else None
        if isinstance(atom, int) and isinstance(last, int):
            dim[-1] = last * atom
        elif atom != 1:
            dim.append(atom)
    return tuple(dim) or (1,)


def regroup(layout: Layout, extent: dict[str, int], shape: Sequence[int]) -> Layout | None:
    """The layout after a view to ``shape``; None if the view cuts through batch, rows or columns.

    Args:
        layout: of the tensor that is viewed.
        extent: sizes of "n", "h" and "w".
        shape: the sizes after the view, no -1.
    """
    atoms: list[Atom] = [atom for dim in layout for atom in dim if atom != 1]
    result: list[list[Atom]] = []
    for index, size in enumerate(shape):
        dim: list[Atom] = []
        following = shape[index + 1] if index + 1 < len(shape) else None
        if size == 1 and atoms and _size(atoms[0], extent) == 1:
            dim.append(atoms.pop(0))  # a batch, row or column axis that happens to have size one
        while size > 1:
            if not atoms:
                return None
            atom = atoms.pop(0)
            length = _size(atom, extent)
            if size % length == 0:
                dim.append(atom)
                size //= length
            elif isinstance(atom, int) and length % size == 0:
                dim.append(size)
                atoms.insert(0, length // size)
                size = 1
            else:
                return None
        while dim and following not in (None, 1) and atoms and _size(atoms[0], extent) == 1:
            dim.append(atoms.pop(0))  # nothing behind could take it
        result.append(dim)
    if any(_size(atom, extent) != 1 for atom in atoms) or not result:
        return None
    result[-1] += atoms
    return tuple(simplify(dim) for dim in result)


def _size(atom: Atom, extent: dict[str, int]) -> int:
    return atom if isinstance(atom, int) else extent[atom]
