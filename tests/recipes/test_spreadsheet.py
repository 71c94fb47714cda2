"""Cells that spreadsheets leave alone."""

import pytest

from groupcam_aug.recipes.spreadsheet import harmless


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_what_begins_like_a_formula_is_made_text(text):
    assert harmless(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["cat", "a=b", "", "-5", "+1e3", 7, 0.5, "photos/=x.jpg"])
def test_everything_else_stays(cell):
    assert harmless(cell) == cell
