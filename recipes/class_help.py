"""The options of the usual model, data and Trainer, read from their source: help that imports none of them."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docstring_parser

__all__ = ["CLASSES", "Option", "class_parser", "options_of", "without_marks"]

CLASSES = {  # part of a command line: package, file in it, class
    "model": ("groupcam_aug.recipes", "classifier.py", "Classifier"),
    "data": ("groupcam_aug.recipes", "data.py", "ImageData"),
    "trainer": ("pytorch_lightning", "trainer/trainer.py", "Trainer"),
}
FROM_DATA = ("num_classes", "class_names", "mean", "std", "size")  # of a model: the data say them


@dataclass(frozen=True)
class Option:
    """An argument of a class."""

    name: str
    default: str | None  # as in the source; None where there is none
    help: str


def class_parser(command: str, part: str) -> argparse.ArgumentParser:
    """A parser that shows the options of the usual class of "model", "data" or "trainer"."""
    name = CLASSES[part][2]
    about = "Options of Lightning's Trainer."
    if part != "trainer":
        summary = " ".join(without_marks(_found(part)[1].partition("\n\n")[0]).split())
        about = textwrap.fill(f"{summary} Options of {name}; of another class: --{part}.help CLASS", 100)
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        usage=f"groupcam-aug {command} [--{part}.OPTION VALUE ...]",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    group = parser.add_argument_group("options")
    for option in options_of(part):
        if part == "model" and option.name in FROM_DATA:
            continue
        known = "" if option.default is None or "efault:" in option.help else f" Default: {option.default}."
        text = (option.help.rstrip(".") + "." if option.help else "") + known
        group.add_argument(f"--{part}.{option.name}", metavar=option.name.upper(), help=text.replace("%", "%%"))
    return parser


def options_of(part: str) -> Iterator[Option]:
    """The arguments of the usual class of "model", "data" or "trainer", in their order."""
    init, doc = _found(part)
    parameters = docstring_parser.parse(doc).params
    texts = {one.arg_name: " ".join(without_marks(one.description or "").split()) for one in parameters}
    arguments = [*init.args.posonlyargs, *init.args.args][1:]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(init.args.defaults))
    pairs = [*zip(arguments, [*defaults, *init.args.defaults], strict=True)]
    pairs += zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    for argument, default in pairs:
        yield Option(argument.arg, None if default is None else ast.unparse(default), texts.get(argument.arg, ""))


def without_marks(text: str) -> str:
    """A help text without the marks of reStructuredText: of ``:class:`~package.Name` `` the name stays, double backquotes go."""
    text = re.sub(r":[\w:]+:\s*`~?(?:[^`<]*<)?([^`>]+)>?`", lambda found: found[1].rpartition(".")[2], text)
    return text.replace("``", "").replace("`_", "")


def _found(part: str) -> tuple[ast.FunctionDef, str]:
    """``__init__`` of the class and the docstring that tells its arguments."""
    package, file, name = CLASSES[part]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__")
    doc = ast.get_docstring(node) or ""
    return init, doc if "Args:" in doc else ast.get_docstring(init) or ""
