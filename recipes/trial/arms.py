"""The arms of a trial: named overrides of a config of ``fit``, read from YAML."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from groupcam_aug.recipes.shipped_configs import shipped_arms
from groupcam_aug.recipes.unknown_names import imported_class, nearest

__all__ = ["AS_IT_IS", "Arm", "all_arms", "is_kind", "is_left_out", "read_arms", "where_things_are", "with_arm"]

AS_IT_IS = "config"  # the arm that leaves the config's own augmentation as it stands
CLASSIFIER = "groupcam_aug.recipes.classifier.Classifier"
# What an arm takes over from the config's augmentation: where things are and when, not the form that is compared.
INHERITED = (
    *("network", "layer", "image_key", "target_key", "mask_key", "extra_keys", "output", "preprocess", "activation"),
    *("chunk", "start_epoch", "stop_epoch", "every_n_steps"),
)
# Callbacks that end a training early, choose an epoch, or show what a trial shows itself.
LEFT_OUT = (
    *("Checkpoint", "EarlyStopping", "SaliencyEarlyStopping", "ProgressBar", "ModelSummary"),
    *("LearningRateMonitor", "DeviceStatsMonitor"),
)


@dataclass(frozen=True)
class Arm:
    """One way to train; everything else is the config's.

    Args:
        name: letters, digits, ``.``, ``_`` and ``-``.
        about: one line.
        control: the arm of the same form that knows nothing of where the object is. None: there is none.
        callbacks: added to the config's, as a config gives them.
        set: values by dotted key, as on the command line without the dashes.
    """

    name: str
    about: str = ""
    control: str | None = None
    callbacks: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    set: Mapping[str, Any] = field(default_factory=dict, hash=False)


def read_arms(names: Sequence[str], file: str | Path | None = None) -> list[Arm]:
    """The arms of those names, from `file` and from those that come with the package.

    Args:
        names: in the order of the tables. None given: all of `file`.
        file: YAML, a mapping from names to ``about``, ``control``, ``callbacks`` and ``set``, each optional.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown or repeated name, or a file that holds something else.
    """
    known = all_arms(file)
    names = names or list(_read(Path(file)) if file is not None else known)
    for name in names:
        if name not in known:
            raise ValueError(f"no arm {name!r}{nearest(name, known)} (arms: {', '.join(known)})")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"--arms {' '.join(names)}: give each arm once")
    return [known[name] for name in names]


def all_arms(file: str | Path | None = None) -> dict[str, Arm]:
    """The arms that come with the package, and those of `file`, by name; see `read_arms`."""
    mine = _read(Path(file)) if file is not None else {}
    return _read(shipped_arms()) | {AS_IT_IS: Arm(AS_IT_IS, "the config as it is")} | mine


def with_arm(config: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """A config whose callbacks are those of an arm; ``arm.set`` is the parser's part.

    Args:
        config: complete, as ``fit --print_config`` shows it: callbacks have their full class paths.
        arm: which.
    """
    tree = copy.deepcopy(dict(config))
    trainer = tree["trainer"]
    callbacks = trainer["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    kept = [entry for entry in callbacks if not is_left_out(_class(entry["class_path"]))]
    if arm.name != AS_IT_IS:
        kept = [entry for entry in kept if not is_kind(entry, "GroupCAMAugmentation")]
    where = _inherited(config)
    for entry in arm.callbacks:
        takes = _arguments(entry["class_path"])
        given = {key: value for key, value in where.items() if key in takes}
        kept.append({"class_path": entry["class_path"], "init_args": given | dict(entry.get("init_args") or {})})
    trainer["callbacks"] = kept
    return tree


def where_things_are(config: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, Any]:
    """Network, images, labels and logits, as the config's augmentation says, or else the first of the arms that does.

    Returns:
        ``network``, ``image_key``, ``target_key``, ``output`` and ``preprocess``, those that are said.
    """
    said = _inherited(config)
    for arm in arms:
        for entry in arm.callbacks:
            if is_kind(entry, "GroupCAMAugmentation"):
                said = {**(entry.get("init_args") or {}), **said}
    keys = ("network", "image_key", "target_key", "output", "preprocess")
    found = {key: said[key] for key in keys if said.get(key) is not None}
    if "preprocess" in found:
        found["preprocess"] = _made(found["preprocess"])
    return found


def is_kind(entry: Mapping[str, Any], kind: str) -> bool:
    """Whether a callback of a config is of the class of that bare name, or one that inherits from it."""
    return kind in _names(_class(entry["class_path"]))


def is_left_out(found: Any) -> bool:
    """Whether a class is one of callbacks that no arm has."""
    return not _names(found).isdisjoint(LEFT_OUT)


def _names(found: Any) -> set[str]:
    """Bare names of a class and of those that it inherits from."""
    return {base.__name__ for base in getattr(found, "__mro__", ())}


def _inherited(config: Mapping[str, Any]) -> dict[str, Any]:
    callbacks = config["trainer"]["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    augmentation = next((entry for entry in callbacks if is_kind(entry, "GroupCAMAugmentation")), None)
    if augmentation is None:
        return {"network": "network"} if config["model"]["class_path"] == CLASSIFIER else {}
    given = augmentation.get("init_args") or {}
    return {key: given[key] for key in INHERITED if key in given}


def _made(callable_of_config: Any) -> Any:
    """A function by its path, or an object by its class and arguments, as a config gives them."""
    import pkgutil

    if isinstance(callable_of_config, str):
        return pkgutil.resolve_name(callable_of_config)
    return pkgutil.resolve_name(callable_of_config["class_path"])(**(callable_of_config.get("init_args") or {}))


def _class(path: str) -> Any:
    import groupcam_aug.callbacks
    import groupcam_aug.recipes.trial.batch_transform  # noqa: F401 - so that the classes of the shipped arms are there

    return imported_class(path)


def _arguments(path: str) -> Sequence[str]:
    """Those that a class of ours takes; other classes know nothing of what is inherited."""
    import inspect

    found = _class(path)
    ours = isinstance(found, type) and found.__module__.startswith("groupcam_aug.")
    return list(inspect.signature(found).parameters) if ours else ()


def _read(path: Path) -> dict[str, Arm]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{str(path)!r} is no YAML: {error}") from error
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{str(path)!r}: expected arms by name, each with about, control, callbacks and set")
    return {str(name): _arm(str(name), found, path) for name, found in tree.items()}


def _arm(name: str, found: Any, path: Path) -> Arm:
    where = f"{str(path)!r}, arm {name!r}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"{where}: a name has letters, digits, '.', '_' and '-' only; it becomes the name of files")
    found = {} if found is None else found
    if not isinstance(found, dict) or set(found) - {"about", "control", "callbacks", "set"}:
        raise ValueError(f"{where}: expected about, control, callbacks and set, got {found!r}")
    callbacks, changes = found.get("callbacks") or [], found.get("set") or {}
    if not isinstance(callbacks, list) or not all(isinstance(entry, dict) and entry.get("class_path") for entry in callbacks):
        raise ValueError(f"{where}: callbacks is a list of {{class_path: ..., init_args: {{...}}}}, got {callbacks!r}")
    if not isinstance(changes, dict):
        raise ValueError(f"{where}: set is a mapping from dotted keys to values, got {changes!r}")
    return Arm(name, str(found.get("about") or ""), found.get("control"), tuple(callbacks), changes)
