"""Tables as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def write_csv(path: str | Path, columns: Mapping[str, ArrayLike]) -> None:
    """Write columns of equal length under their names; tables of several dimensions are written out row by row.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.

    Raises:
        OSError: The file cannot be written.
        ValueError: The columns differ in length.
    """
    flat: list[list[Any]] = [[_cell(v) for v in np.asarray(column).ravel().tolist()] for column in columns.values()]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_cell(name) for name in columns)
        writer.writerows(zip(*flat, strict=True))


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
