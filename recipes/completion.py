"""``groupcam-aug completion``: a script for the shell, made by shtab from the parsers of all commands."""

from __future__ import annotations

import argparse

import shtab

from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import COMMANDS, parser_of

__all__ = ["run"]

FILES = ("FILE", "IMAGE", "CHECKPOINT", "RUN_DIR")  # metavars of what is a file or a folder


def run(command: str, words: list[str]) -> int:
    """The command: print the script."""
    options = parsers.completion(command).parse_args(words)
    whole = argparse.ArgumentParser(prog="groupcam-aug")
    whole.add_argument("--version", action="store_true", help="print the version and exit")
    commands = whole.add_subparsers()
    for row in COMMANDS:
        part = parser_of(row)
        for action in part._actions:
            if action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        commands.add_parser(row.name, help=row.help, parents=[part], add_help=False)
    print(shtab.complete(whole, options.shell))
    return 0
