"""What a checkpoint of `Classifier` says of itself, read as plain values: a file from elsewhere must not run anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor, nn

from groupcam_aug.checkpoints import read_checkpoint

__all__ = ["INFO", "STARTS", "check_network", "described", "exported_info", "is_harmless", "kept_choices", "read_classifier"]

INFO = ("network", "num_classes", "class_names", "mean", "std", "size")
STARTS = ("checkpoint", "weights")  # arguments that name a file to start from, by their name now and their former one
MOST_PIXELS, MOST_CLASSES = 16_384, 1_000_000  # beyond them a changed number would fill the memory
_DAMAGED = "the file is damaged, or somebody changed it"
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
    exported = Path(path).suffix == ".safetensors"
    if exported:
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
            f"{str(path)!r} names {len(arguments['class_names'])} classes, but num_classes={arguments['num_classes']}: {_DAMAGED}"
        )
    lengths = {len(arguments[name]) for name in ("mean", "std") if arguments[name] is not None}
    three = None not in (arguments["network"], arguments["size"])  # `Classifier` has tried it with images of three channels
    if len(lengths) > 1 or (three and lengths - {3}):
        raise ValueError(
            f"{str(path)!r}, hyper_parameters: mean={_short(arguments['mean'])} and std={_short(arguments['std'])} do not have a "
            f"number for each channel; {_DAMAGED}"
        )
    if arguments["network"] is not None:
        arguments["network"] = described(arguments["network"])
    if not exported:
        _check({name: content.get(name) for name in _OF_LIGHTNING}, _OF_LIGHTNING, repr(str(path)))
    kept = content.get("ImageData", {})  # where Lightning puts the `state_dict` of a data module of that name
    if not isinstance(kept, Mapping):
        raise ValueError(f"{str(path)!r}: ImageData={_short(kept)} is no mapping; {_DAMAGED}")
    known = _CHOICES | _TRAINING
    _check({name: value for name, value in kept.items() if name in known}, known, f"{str(path)!r}, ImageData")
    _check_weights(content.get("state_dict"), path)
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
    """What `ImageData` left in a checkpoint that `read_classifier` gave: ``resize``, and ``val_fraction`` and ``seed`` of the
    split; nothing of other data.
    """
    kept = checkpoint.get("ImageData", {})
    return {name: kept[name] for name in _CHOICES if name in kept}


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


def is_harmless(network: str | Mapping[str, Any] | None) -> bool:
    """Whether `check_network` lets a description of a network pass."""
    try:
        check_network(network, "")
    except ValueError:
        return False
    return True


def _check_weights(state: Any, path: str | Path) -> None:
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{str(path)!r} holds no weights under state_dict: {_DAMAGED}")
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            kind = "without numbers (meta)" if value.is_meta else f"{value.dtype}, {value.layout}"
            raise ValueError(f"{str(path)!r}, state_dict: {name!r} is {kind}, no dense tensor of real numbers; {_DAMAGED}")
        if bool(torch.isnan(value).any()):
            raise ValueError(
                f"{str(path)!r} holds weights that are not numbers ({name!r}): its training diverged; take an earlier one"
            )


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
            raise ValueError(f"{where}: {name}={_short(value)} is no {expected}; {_DAMAGED}")


def _short(value: Any) -> str:
    text = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, least: int = 0, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_size(value: Any) -> bool:
    return value is None or _is_count(value, 1, MOST_PIXELS)


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


def _is_version(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(Version(value))
    except InvalidVersion:
        return False


def _are_states(value: Any) -> bool:
    """Whether it is what Lightning keeps of callbacks or loops: mappings by name."""
    return value is None or (isinstance(value, Mapping) and all(isinstance(state, Mapping) for state in value.values()))


def _are_ids(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    return dense and value.dtype == torch.int64 and value.ndim == 1


def _are_numbers(value: Any) -> bool:
    return value is None or (_is_list(value, _is_number) and len(value) > 0)


_NUMBER, _COUNT, _SIZE = (_is_number, "finite number"), (_is_count, "count"), (_is_size, f"count from 1 to {MOST_PIXELS:,}")
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_network, "name of a network or class_path with init_args"),
    "num_classes": (lambda value: _is_count(value, 2, MOST_CLASSES), f"count from 2 to {MOST_CLASSES:,}"),
    "class_names": (lambda value: value is None or _is_list(value, lambda name: isinstance(name, str)), "list of names"),
    "mean": (_are_numbers, "list of finite numbers"),
    "std": (
        lambda value: _are_numbers(value) and all(part > 1e-30 for part in value or ()),
        "list of positive numbers",
    ),  # in float32
    "size": _SIZE,
    "schedule": (lambda value: value in ("step", "cosine"), "'step' or 'cosine'"),
    **dict.fromkeys(("lr", "momentum", "weight_decay", "lr_gamma", "head_lr_factor", "label_smoothing"), _NUMBER),
    **dict.fromkeys(("lr_step", "freeze_epochs"), _COUNT),
}
_CHOICES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "resize": _SIZE,
    "val_fraction": (lambda value: _is_number(value) and 0 < value < 1, "share between 0 and 1"),
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool), "whole number"),
}
_TRAINING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trained": (_are_ids, "tensor of int64, a number for each image"),
    "order_seed": (lambda value: value is None or _is_count(value, -(2**63)), "whole number"),
}
_OF_LIGHTNING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "pytorch-lightning_version": (_is_version, "version of Lightning, such as '2.5.0'"),
    **dict.fromkeys(("loops", "callbacks"), (_are_states, "mapping of mappings")),
}
