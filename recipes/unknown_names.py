"""Names that nothing has: what a command line or a config holds of them, and the nearest that there are."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "RENAMED",
    "full_name",
    "given_options",
    "imported_class",
    "names_class",
    "nearest",
    "read_yaml",
    "stated",
    "unknown_names",
]

RENAMED = {"weights": "checkpoint"}  # arguments of our classes, as older configs have them
ELSEWHERE = {  # what other tools call an argument that letters alone would not lead to
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "n_epochs": "max_epochs",
    "wd": "weight_decay",
    "workers": "num_workers",
    "arch": "network",
    "backbone": "network",
    "model_name": "network",
    "image_size": "size",
    "img_size": "size",
}


def unknown_names(words: Sequence[str], options: Sequence[str], usual: Mapping[str, str]) -> Iterator[str]:
    """For each name in a command line and its configs that nothing here has, what to add to the parser's message.

    Args:
        words: of the command line.
        options: dotted names of the parser's options. Arguments of classes are looked up in the classes.
        usual: class paths of the parts ("model", "data") that neither says otherwise.
    """
    given = dict(given_options(words))
    trees = [read_yaml(value) for flag, value in given_options(words) if flag == "--config"]
    of_classes: list[str] = []
    for part, default in usual.items():
        in_configs = [tree[part] for tree in trees if isinstance(tree.get(part), dict)]
        in_configs += filter(None, [read_yaml(given.get(f"--{part}", ""))])  # a config of the part alone
        paths = [given.get(f"--{part}"), given.get(f"--{part}.class_path"), *(tree.get("class_path") for tree in in_configs)]
        names = [flag.removeprefix(f"--{part}.").removeprefix("init_args.") for flag in given if flag.startswith(f"--{part}.")]
        for tree in (*in_configs, dict.fromkeys(names)):
            beside = {name: value for name, value in tree.items() if name not in ("class_path", "init_args", "dict_kwargs")}
            arguments = {**(tree.get("init_args") or {}), **beside}
            path = tree.get("class_path") or next(filter(None, paths), default)
            of_classes += [f"{part}.{name}" for name in _parameters(imported_class(str(path)))]
            yield from _unknown_arguments({"class_path": path, "init_args": arguments})
    for tree in trees:
        yield from _unknown_arguments(tree.get("trainer"))
        yield from _unknown_options(tree, options)
    yield from _unknown_callback_arguments(words, trees)
    flags = [flag[2:].rstrip("+") for flag in given if flag.startswith("--")]
    # An option may be cut short as long as it is the only one that begins so.
    cut = {flag: None for flag in flags if sum(option.startswith(flag) for option in options) != 1}
    yield from _unknown_options(cut, options, of_classes)


def nearest(name: str, known: Iterable[str], renamed: Mapping[str, str] | None = None) -> str:
    """A suggestion to append to a message, or nothing if no name is near.

    Args:
        name: what was given.
        known: what there is.
        renamed: former names and what they became.
    """
    names = list(known)
    if renamed and renamed.get(name) in names:
        return f"; it is called {renamed[name]!r} now"
    last = name.rpartition(".")[2]
    near = [known for known in names if known.rpartition(".")[2] in (last, ELSEWHERE.get(last, last))]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def given_options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of each option; the value is the next word, if it is not in the same."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag.startswith("-"):
            yield full_name(flag), value if equals else following


def full_name(flag: str) -> str:
    """A flag that was cut short, as far as ``--ckpt_path`` and ``--config`` go."""
    full = [name for name in ("--ckpt_path", "--config") if len(flag) > 3 and name.startswith(flag)]
    return full[0] if len(full) == 1 else "--config" if flag == "-c" else flag


def stated(words: Sequence[str], part: str) -> dict[str, tuple[Any, bool]]:
    """What a command line and its configs say of one part: later words hold, another class drops what was said of the one before.

    Args:
        words: of the command line; configs as files that are there.
        part: "model" or "data".

    Returns:
        By dotted name of the argument, as in "network.init_args.depth", and "class_path": the value, and whether the command line
        itself says it (True) or a config (False).
    """
    found: dict[str, tuple[Any, bool]] = {}
    for flag, value in given_options(words):
        on_line, tree = True, None
        if flag == "--config":
            tree, on_line = read_yaml(value).get(part), False
            if isinstance(tree, str):
                tree = read_yaml(str(Path(value).parent / tree)) or tree
        elif flag == f"--{part}":  # a class, a mapping in one word, or a config of the part alone
            tree = _read_text(value)
            tree = tree if isinstance(tree, dict) else read_yaml(value) or str(tree)
        elif flag.startswith(f"--{part}.") and flag != f"--{part}.help":
            tree = {flag.removeprefix(f"--{part}."): _read_text(value)}
        tree = {"class_path": tree} if isinstance(tree, str) else tree
        if not isinstance(tree, dict):
            continue
        kind = tree.get("class_path")
        if kind and "class_path" in found and str(found["class_path"][0]).rpartition(".")[2] != str(kind).rpartition(".")[2]:
            found.clear()
        arguments = tree.get("init_args")
        beside = {name.removeprefix("init_args."): value for name, value in tree.items() if name != "init_args"}
        found |= {
            name: (value, on_line) for name, value in {**(arguments if isinstance(arguments, dict) else {}), **beside}.items()
        }
    return found


def names_class(words: Sequence[str], part: str) -> bool:
    """Whether a command line, or a config in it, names the class of "model" or "data".

    Args:
        words: of the command line; configs as files that are there.
        part: "model" or "data".
    """
    return bool(stated(words, part).get("class_path", (None, False))[0])


def imported_class(path: str) -> Any:
    """The object of that dotted path, perhaps nested in a class, whose module is imported already; None if it is not found."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        if (found := sys.modules.get(".".join(parts[:count]))) is not None:
            for name in parts[count:]:
                found = getattr(found, name, None)
            return found
    return None


def _read_text(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a config; nothing where there is none, which the parser has said."""
    import yaml  # not needed before something went wrong

    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _unknown_options(
    tree: dict[str, Any], options: Sequence[str], of_classes: Sequence[str] = (), above: str = ""
) -> Iterator[str]:
    """`tree` is the part of a config under the dotted name `above`; what lies below an option is its value."""
    groups = {option.rpartition(".")[0] for option in options if not option.endswith(".help")}  # which classes have, too
    for key, value in tree.items():
        name = f"{above}{key}"
        if name in groups and isinstance(value, dict):
            yield from _unknown_options(value, options, above=f"{name}.")
        elif name not in options and not any(name.startswith(f"{option}.") for option in options if option not in groups):
            yield nearest(name, [*options, *of_classes])


def _unknown_arguments(tree: Any) -> Iterator[str]:
    """Of every class in a part of a config."""
    if isinstance(tree, list):
        for item in tree:
            yield from _unknown_arguments(item)
    elif isinstance(tree, dict):
        arguments, path = tree.get("init_args"), str(tree.get("class_path"))
        known = _parameters(imported_class(path))
        for name in arguments if known and isinstance(arguments, dict) else ():
            if name.partition(".")[0] not in known:
                kind = path.rpartition(".")[2]
                yield f"; {kind} takes no {name!r}{nearest(name, known, RENAMED)} (it takes {', '.join(known)})"
        for value in tree.values():
            yield from _unknown_arguments(value)


def _unknown_callback_arguments(words: Sequence[str], trees: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of callbacks on the command line, where arguments follow the class that they belong to, or mean the last of the config."""
    path = ""
    for tree in trees:
        trainer = tree.get("trainer")
        callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
        if isinstance(callbacks, list) and callbacks and isinstance(callbacks[-1], dict):
            path = str(callbacks[-1].get("class_path"))
    for flag, value in given_options(words):
        if flag.rstrip("+") == "--trainer.callbacks":
            path = value if "." in value else f"groupcam_aug.callbacks.{value}"
        elif flag.startswith("--trainer.callbacks."):
            name = flag.removeprefix("--trainer.callbacks.").removeprefix("init_args.")
            yield from _unknown_arguments({"class_path": path, "init_args": {name: value}})


def _parameters(kind: Any) -> list[str]:
    """Names of the arguments that a class takes; none if it takes any, or is not known."""
    if not isinstance(kind, type):
        return []
    parameters = inspect.signature(kind).parameters.values()
    return [] if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) else [p.name for p in parameters]
