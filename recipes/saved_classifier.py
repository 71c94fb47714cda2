"""What a checkpoint of `Classifier` says of itself, read as plain values: a file from elsewhere must not run anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groupcam_aug.checkpoints import read_checkpoint

__all__ = ["INFO", "STARTS", "check_network", "described", "exported_info", "kept_choices", "read_classifier"]

INFO = ("network", "num_classes", "class_names", "mean", "std", "size")
STARTS = ("checkpoint", "weights")  # arguments that name a file to start from, by their name now and their former one
KNOWN_PACKAGES = ("timm", "torchvision", "groupcam_aug")  # whose networks are made without being asked for


def read_classifier(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint that `Classifier` wrote, on the CPU, read with ``weights_only=True``.

    A ``.safetensors`` file of `groupcam-aug export` is read as if it were one: its metadata say the same.

    What ``hyper_parameters`` says of a file of starting weights is left out: the checkpoint brings its own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of `Classifier`, or says of itself what that never writes.
    """
    content: Any = read_checkpoint(path)
    if Path(path).suffix == ".safetensors":
        content = _exported(path, content)
    settings = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not (isinstance(settings, dict) and set(INFO) <= set(settings)):
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of `groupcam-aug fit`: it lacks {', '.join(INFO)} in hyper_parameters "
            "(a plain state dict needs the name of its network beside it: --model NAME)"
        )
    # Names with an underscore are Lightning's notes on how to call the class, which nothing here follows.
    arguments = {name: value for name, value in settings.items() if name not in STARTS and not str(name).startswith("_")}
    _check(arguments, _SETTINGS, f"{str(path)!r}, hyper_parameters")
    if arguments["class_names"] is not None and len(arguments["class_names"]) != arguments["num_classes"]:
        raise ValueError(
            f"{str(path)!r} names {len(arguments['class_names'])} classes, but num_classes={arguments['num_classes']}: "
            "the file is damaged, or somebody changed it"
        )
    if arguments["network"] is not None:
        arguments["network"] = described(arguments["network"])
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{str(path)!r} holds no weights under state_dict: the file is damaged, or somebody changed it")
    if (bad := next((name for name, value in state.items() if bool(torch.isnan(value).any())), None)) is not None:
        raise ValueError(
            f"{str(path)!r} holds weights that are not numbers ({bad!r}): its training diverged; take an earlier one"
        )
    return {**content, "hyper_parameters": arguments}


def exported_info(path: str | Path) -> dict[str, Any]:
    """What the metadata of a ``.safetensors`` file of `groupcam-aug export` say, unchecked; nothing for another file.

    Raises:
        ValueError: they are not JSON.
    """
    from safetensors import safe_open

    with safe_open(Path(path).expanduser(), framework="pt") as file:
        found = file.metadata() or {}
    if not set(INFO) <= set(found):
        return {}
    try:
        return {name: json.loads(found[name]) for name in (*INFO, "resize") if name in found}
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r}: its metadata are damaged, or somebody changed them ({error})") from error


def kept_choices(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What `ImageData` left in a checkpoint: ``resize``, ``val_fraction`` and ``seed`` of the split; nothing of other data.

    Raises:
        ValueError: one of them is not what `ImageData` writes.
    """
    kept = checkpoint.get("ImageData") or {}  # where Lightning puts the `state_dict` of a data module of that name
    choices = {name: kept[name] for name in _CHOICES if name in kept} if isinstance(kept, Mapping) else {}
    _check(choices, _CHOICES, "the checkpoint's ImageData")
    return choices


def check_network(network: str | Mapping[str, Any] | None, path: str | Path) -> None:
    """Refuse a description of a network, before anything is imported, unless making it is harmless whoever wrote it.

    Raises:
        ValueError: a class of another package than `KNOWN_PACKAGES`, or an argument that is no number, text or list of those.
    """
    if not isinstance(network, Mapping):
        return
    name = str(network["class_path"])
    remedy = "making it may run any code: add --trust (in Python trust=True) if you know where the file comes from"
    if name.partition(".")[0] not in KNOWN_PACKAGES:
        raise ValueError(f"{str(path)!r} names a network class {name!r}, not one of {', '.join(KNOWN_PACKAGES)}; {remedy}")
    for argument, value in network["init_args"].items():
        if not _is_plain(value):
            raise ValueError(f"{str(path)!r} gives {name} an argument {argument}={value!r}, no number, text or list; {remedy}")


def described(network: str | Mapping[str, Any] | nn.Module) -> str | dict[str, Any] | None:
    """The network's description without a file to start from, as builtins that a checkpoint can hold; None for a live module."""
    if isinstance(network, nn.Module):
        return None
    if isinstance(network, str):
        return network
    beside = {key: value for key, value in network.items() if key not in ("class_path", "init_args")}
    arguments = {key: value for key, value in {**(network.get("init_args") or {}), **beside}.items() if key not in STARTS}
    return {"class_path": network["class_path"], "init_args": arguments}


def _exported(path: str | Path, state: dict[str, Tensor]) -> dict[str, Any]:
    """The content of a file of `groupcam-aug export`, as a checkpoint has it."""
    info = exported_info(path)
    kept = {"ImageData": {"resize": info.pop("resize", None)}}
    return {"hyper_parameters": info, "state_dict": {f"network.{name}": value for name, value in state.items()}, **kept}


def _check(values: Mapping[str, Any], known: Mapping[str, tuple[Callable[[Any], bool], str]], where: str) -> None:
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}: unknown setting {name!r}; a newer version of this package, or somebody else, wrote it")
        fits, expected = known[name]
        if not fits(value):
            raise ValueError(f"{where}: {name}={value!r} is no {expected}; the file is damaged, or somebody changed it")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str) or _is_list(value, _is_plain)


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(fits(item) for item in value)


def _is_network(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return True
    named = isinstance(value, dict) and isinstance(value.get("class_path"), str) and all(isinstance(key, str) for key in value)
    arguments = value.get("init_args") if named else None
    return named and (arguments is None or (isinstance(arguments, dict) and all(isinstance(key, str) for key in arguments)))


def _are_numbers(value: Any) -> bool:
    return value is None or (_is_list(value, _is_number) and len(value) > 0)


_NUMBER, _COUNT = (_is_number, "finite number"), (_is_count, "count")
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_network, "name of a network or class_path with init_args"),
    "num_classes": (lambda value: _is_count(value, 2), "count from 2 on"),
    "class_names": (lambda value: value is None or _is_list(value, lambda name: isinstance(name, str)), "list of names"),
    "mean": (_are_numbers, "list of finite numbers"),
    "std": (lambda value: _are_numbers(value) and all(part > 0 for part in value or ()), "list of positive numbers"),
    "size": (lambda value: value is None or _is_count(value, 1), "count from 1 on"),
    "schedule": (lambda value: value in ("step", "cosine"), "'step' or 'cosine'"),
    **dict.fromkeys(("lr", "momentum", "weight_decay", "lr_gamma", "head_lr_factor", "label_smoothing"), _NUMBER),
    **dict.fromkeys(("lr_step", "freeze_epochs"), _COUNT),
}
_CHOICES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "resize": (lambda value: value is None or _is_count(value, 1), "count from 1 on"),
    "val_fraction": (lambda value: _is_number(value) and 0 < value < 1, "share between 0 and 1"),
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "whole number"),
}
