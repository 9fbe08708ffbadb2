"""Tables on standard output."""

from collections.abc import Sequence

__all__ = ["print_table"]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest entry: text to the left, numbers to the right.

    Example:
        >>> print_table(["model", "nats"], [["VAE", "-99.10"], ["PixelVAE", "-80.00"]])
        model       nats
        VAE       -99.10
        PixelVAE  -80.00
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    numbers = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    for line in lines:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "-+." or cell in ("nan", "inf")
