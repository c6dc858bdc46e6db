"""Tables of results: written as CSV, read again, shown as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

Line = dict[str, str]


def write_table(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Write lines of named cells, numbers by four significant digits or more where they are whole.

    Raises:
        ValueError: There are no lines, or they differ in their names.
    """
    cells = [{name: _text(value) for name, value in line.items()} for line in lines]
    if not cells:
        raise ValueError(f"there is nothing to write to {path}")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)


def read_table(path: Path) -> list[Line]:
    """The lines of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(headings: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    r"""A table in Markdown, its first column to the left and the others to the right.

    Example:
        >>> print(markdown(["network", "right"], [["ResNet-20", "91.7"]]))
        | network | right |
        |---|---:|
        | ResNet-20 | 91.7 |
    """
    names = list(headings)
    rows = [names, *map(list, lines)]
    text = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([text[0], "|---" + "|---:" * (len(names) - 1) + "|", *text[1:]])
