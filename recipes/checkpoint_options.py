"""A checkpoint on the command line: what it holds holds, in whatever order the options come; what contradicts it is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groupcam_aug.recipes.classifier import Classifier, load_classifier
from groupcam_aug.recipes.saved_classifier import INFO, described, kept_choices, read_classifier
from groupcam_aug.recipes.unknown_names import full_name, given_options, read_yaml, stated

__all__ = ["CLASSIFIER", "check_same", "from_checkpoint"]

CLASSIFIER = "groupcam_aug.recipes.classifier.Classifier"
OF_TRAINER = ("best", "last", "hpc")  # words for a checkpoint that a Trainer looks for
NOTHING = ("", "null", "None", "~")


def from_checkpoint(words: Sequence[str], command: str, trust: bool = False) -> tuple[list[str], Classifier | None]:
    """What ``--ckpt_path`` says, added to a command line, and the classifier that it holds.

    For `ImageData` and `ShapesDataModule` the words get size, normalisation and split where nothing else states them. The
    network is made here and not by the parser, which would call whatever a file names.

    Args:
        words: of the command line, with recipes as files.
        command: fit, validate, test or predict.
        trust: as in `load_classifier`. A network that the words state as the checkpoint does needs none.

    Returns:
        The words, with ``--ckpt_path`` at the end, where no config can undo it; and the classifier, or None for `fit`, for
        another model, and for "last", which only the Trainer finds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: no checkpoint, one that does not describe its network, or words that contradict it.
    """
    if any(flag in ("-h", "--help") or flag.endswith(".help") or "--print_config" in flag for flag, _ in given_options(words)):
        return list(words), None
    path, model = _path(words), stated(words, "model")
    on_line = any(flag == "--ckpt_path" for flag, _ in given_options(words))
    if path in NOTHING:
        starts = [str(value) for name, (value, _) in model.items() if name.rpartition(".")[2] in ("pretrained", "checkpoint")]
        if command != "fit" and not on_line and all(start in (*NOTHING, "False") for start in starts) and not _starts(model):
            raise ValueError(
                f"{command} needs a checkpoint: add --ckpt_path FILE (or --ckpt_path null, to {command} the network as the "
                "config makes it)"
            )
        return list(words), None
    words = [*_without_path(words), "--ckpt_path", path if path in OF_TRAINER or "://" in path else str(Path(path).expanduser())]
    ours = str(model.get("class_path", (CLASSIFIER, True))[0]) in (CLASSIFIER, "Classifier")
    if path in OF_TRAINER or not ours:
        return words, None
    if command == "fit":
        if not model:
            raise ValueError(f"fit goes on from {path!r} only with the config of its training: add --config {_config_of(path)}")
        return words, None
    if path.endswith(".safetensors"):
        raise ValueError(f"{path!r} holds weights alone: {command} takes the .ckpt that it was exported from")
    checkpoint = read_classifier(path)
    kept = checkpoint["hyper_parameters"]
    if kept["network"] is None:
        raise ValueError(f"{path!r} was trained around a live module, which it cannot describe: there is no command line for it")
    _check_model(model, kept, path)
    whole = model.get("network", (None, False))[0]
    same = isinstance(whole, Mapping) and "class_path" in whole and described(whole) == kept["network"]
    words += _of_data(stated(words, "data"), checkpoint, path)
    return words, load_classifier(path, trust=trust or same)[0]


def check_same(path: str, model: Classifier, data: Any = None) -> None:
    """Refuse a checkpoint of another network, other classes or another normalisation than model and data have.

    Args:
        path: of a checkpoint of `Classifier`.
        model: that it is to be loaded into.
        data: its ``class_names``, ``mean`` and ``std`` are compared, where it has them.

    Raises:
        ValueError: something differs, or the file is no such checkpoint.
    """
    kept = read_classifier(path)["hyper_parameters"]
    names = getattr(data, "class_names", None)
    if kept["class_names"] and names and list(kept["class_names"]) != list(names):
        raise ValueError(
            f"{path!r} was trained on the classes {_few(kept['class_names'])}; the data have {_few(names)}: give data of the "
            "same classes"
        )
    for name in ("network", "num_classes", "mean", "std"):
        mine, told = model.hparams.get(name), getattr(data, name, None) if name in ("mean", "std") else None
        for value in (mine, told):
            if value is not None and kept[name] is not None and not _same(value, kept[name]):
                raise _contradiction(path, name, kept[name], value)


def _check_model(model: Mapping[str, tuple[Any, bool]], kept: Mapping[str, Any], path: str) -> None:
    for name, (value, _) in model.items():
        first, *below = name.split(".")
        if first not in INFO or value is None:
            continue
        there: Any = kept[first]
        for key in below:
            there = there.get(key) if isinstance(there, Mapping) else None
        value = described(value) if name == "network" and isinstance(value, Mapping) and "class_path" in value else value
        if name.rpartition(".")[2] not in ("checkpoint", "weights") and there is not None and not _same(value, there):
            raise _contradiction(path, f"model.{name}", there, value)


def _of_data(given: Mapping[str, tuple[Any, bool]], checkpoint: Mapping[str, Any], path: str) -> list[str]:
    kind = str(given.get("class_path", ("ImageData", True))[0]).rpartition(".")[2]
    if kind not in ("ImageData", "ShapesDataModule"):
        return []
    known = {name: checkpoint["hyper_parameters"][name] for name in ("size", "mean", "std")}
    if kind == "ImageData":
        known |= kept_choices(checkpoint)
    size, on_line = given.get("size", (None, False))
    if size is not None and on_line and not _same(size, known["size"]):
        # Another resolution is a question that one may ask.
        print(f"images of {size} px, as the command line says; the checkpoint was trained at {known['size']} px")
        known = {name: value for name, value in known.items() if name not in ("size", "resize")}
    words = []
    for name, value in known.items():
        said, on_line = given.get(name, (None, False))
        if value is None or (name == "resize" and on_line):
            continue
        if said is None:
            words += [f"--data.{name}", json.dumps(value)]
        elif not _same(said, value):
            raise _contradiction(path, f"data.{name}", value, said)
    return words


def _contradiction(path: str, name: str, kept: Any, said: Any) -> ValueError:
    return ValueError(
        f"{path!r} was trained with {name}={kept!r}, but config or command line say {said!r}: leave it out, the checkpoint "
        "brings its own, or give another checkpoint"
    )


def _path(words: Sequence[str]) -> str:
    """The checkpoint that the command line names, or else its configs."""
    named = [value for flag, value in given_options(words) if flag == "--ckpt_path"]
    trees = [read_yaml(value) for flag, value in given_options(words) if flag == "--config"]
    named = named or [str(tree["ckpt_path"] or "") for tree in trees if "ckpt_path" in tree]
    return named[-1] if named else ""


def _without_path(words: Sequence[str]) -> list[str]:
    rest, skip = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        if not skip and full_name(flag) == "--ckpt_path":
            skip = not equals
            continue
        if not skip:
            rest.append(word)
        skip = False
    return rest


def _starts(model: Mapping[str, tuple[Any, bool]]) -> bool:
    """Whether the network's class is given a file to start from."""
    network = model.get("network", (None, False))[0]
    return isinstance(network, Mapping) and bool((network.get("init_args") or {}).get("checkpoint"))


def _config_of(path: str) -> str:
    """The config that `fit` saved beside a checkpoint."""
    folders = Path(path).absolute().parents
    found = [folder / "config.yaml" for folder in folders[:2] if (folder / "config.yaml").is_file()]
    return str(found[0]) if found else "FILE, the config.yaml in its log folder"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    try:  # YAML takes 1e-3 for a word
        return a == b or abs(float(a) - float(b)) <= 1e-9 * abs(float(b))
    except (TypeError, ValueError):
        return False


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)})"
