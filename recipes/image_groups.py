"""Groups of test images, of which a worst one is asked for: their class and what a table says of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_groups", "sample_groups"]


def read_groups(path: Path, column: str) -> dict[str, str]:
    """What a CSV table says of each file.

    Args:
        path: of the table; it has a column ``file``, of paths with forward slashes.
        column: the other column.

    Raises:
        FileNotFoundError: no such table.
        ValueError: it lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"groups={str(path)!r} is no file: give a CSV table with the columns file and {column}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if not {"file", column} <= set(names):
            raise ValueError(
                f"{str(path)!r} has the columns {', '.join(names) or '(none)'}, not file and {column}: name the second by "
                "group_column"
            )
        return {row["file"]: row[column] for row in reader}


def sample_groups(
    samples: Sequence[tuple[str, int]], root: Path, class_names: Sequence[str], values: dict[str, str], table: Path
) -> list[str]:
    """The group of each sample, "CLASS, VALUE".

    Args:
        samples: paths and labels.
        root: what the table's paths are relative to.
        class_names: by label.
        values: of each file in the table.
        table: its path, for messages.

    Raises:
        ValueError: a sample is not in the table.
    """
    groups = []
    for path, label in samples:
        name = Path(os.path.relpath(path, root)).as_posix()
        if name not in values:
            raise ValueError(
                f"{name!r} is tested on, but {str(table)!r} does not list it: add a row, paths relative to {str(root)!r}"
            )
        groups.append(f"{class_names[label]}, {values[name]}")
    return groups
