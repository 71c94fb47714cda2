"""Cells of CSV tables, which spreadsheets open: text that would be run as a formula is made plain text."""

from __future__ import annotations

from typing import Any

__all__ = ["harmless"]

STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")  # of what a spreadsheet takes for a formula, or trims until one begins


def harmless(cell: Any) -> Any:
    """A cell that no spreadsheet runs: `'` is put before text that begins like a formula; numbers stay, as text too."""
    if not isinstance(cell, str) or not cell.startswith(STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
