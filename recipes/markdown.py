"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """A pipe table, without a line end after its last row.

    Args:
        columns: the headings.
        rows: of as many cells.
        right: positions of the columns that are aligned to the right.
    """
    rule = ["---:" if i in right else "---" for i in range(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
