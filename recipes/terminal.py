"""The one way in which recipes print what files, classes and errors say: no markup is read in it, nothing steers the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from groupcam_aug.printable import printable

__all__ = ["cell", "counted", "say"]


def say(console: Console, text: object, *, mark: str = "", style: str = "red") -> None:
    """Print text as it stands, in lines as long as they are.

    Args:
        console: where to.
        text: anything; control characters are written out.
        mark: a word in front of it, in colour. Default: none.
        style: of the mark.
    """
    line = Text.assemble((printable(mark), style), " " if mark else "", printable(text))
    console.print(line, soft_wrap=True, highlight=False)


def cell(text: object, note: Any = None) -> Text:
    """A cell of a table, or a heading, or a description; the note behind it is dim."""
    return Text.assemble(printable(text), *(() if note is None else ((f" {printable(note)}", "dim"),)))


def counted(number: int, thing: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
