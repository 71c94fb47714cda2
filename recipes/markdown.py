"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """A table, without a line end behind it.

    Args:
        columns: headings.
        rows: cells in the order of the headings; a `|` in them is escaped.
        right: numbers of the columns, from 0, that are aligned right. Default: none.
    """
    rule = ["---:" if i in right else "---" for i in range(len(columns))]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    lines.insert(1, rule)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
