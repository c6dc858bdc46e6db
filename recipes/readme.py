"""Results written into recipes/README.md, between marks and into rows, so that no number there is typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

README = Path(__file__).parent / "README.md"


def with_block(text: str, name: str, body: str) -> str:
    r"""The text with another body between the marks of a name.

    Raises:
        ValueError: The marks are not there.

    Example:
        >>> with_block("a\n<!-- one -->\nold\n<!-- /one -->\nb", "one", "new")
        'a\n<!-- one -->\nnew\n<!-- /one -->\nb'
    """
    marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError(f"there is no block <!-- {name} --> ... <!-- /{name} --> to write results into")
    return marked.sub(lambda found: found[1] + body + found[2], text)


def with_row(text: str, first: str, last: Sequence[str]) -> str:
    r"""The text with other last cells in the table's row that begins with a cell.

    Raises:
        ValueError: There is no such row.

    Example:
        >>> with_row("| a | 1 | not run |\n| b | 2 | not run |", "b", ["93 %"])
        '| a | 1 | not run |\n| b | 2 | 93 % |'
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(f"| {first} |"):
            cells = line.strip("|").split("|")[: -len(last)]
            lines[number] = "|" + "|".join([*cells, *(f" {cell} " for cell in last)]) + "|"
            return "\n".join(lines)
    raise ValueError(f"there is no row of {first} to write results into")
