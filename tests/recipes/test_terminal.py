"""What recipes print: no text is read as markup, and none steers the terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from groupcam_aug.recipes.terminal import cell, say

RECIPES = Path(__file__).parents[2] / "recipes"
TEXTS = ["[/", "] [/]", "[bold]x[/bold]", "[/red", "\\[x]", "[link=http://x]y[/link]", "100% \\"]


def console():
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=60)


@pytest.mark.parametrize("text", TEXTS)
def test_text_stands_as_it_is_beside_its_mark(text):
    said = console()
    say(said, text, mark="failed")
    assert said.file.getvalue() == f"\x1b[31mfailed\x1b[0m {text}\n"


def test_nothing_steers_the_terminal():
    said = console()
    say(said, "a\x1b[2Jb\x1b]0;t\x07c\rd\x9be\u202ef\ud800g", mark="\x1b[5m", style="")
    assert said.file.getvalue() == "\\x1b[5m a\\x1b[2Jb\\x1b]0;t\\x07c\\x0dd\\x9be\\u202ef\\ud800g\n"


def test_lines_are_as_long_as_they_are():
    said = console()
    say(said, "word " * 40)
    assert said.file.getvalue().count("\n") == 1


@pytest.mark.parametrize("text", TEXTS)
def test_cells_stand_as_they_are(text):
    said, table = console(), Table(title=cell(text))
    table.add_column(cell(text))
    table.add_row(cell(text, "[b]note"))
    said.print(table)
    assert said.file.getvalue().count(text) == 3 and "[b]note" in said.file.getvalue()


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.py")), ids=lambda path: path.stem)
def test_recipes_print_in_this_way_only(path):
    """Besides tables, whose cells are `cell`s or fixed."""
    text = path.read_text(encoding="utf-8")
    assert "rich.markup" not in text and 'TextColumn("{task.description}")' not in text
    if path.name != "terminal.py":
        assert not [line for line in text.splitlines() if ".print(f" in line or '.print("' in line]
