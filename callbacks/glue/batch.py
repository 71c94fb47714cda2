"""What a training batch holds: reading its items, and building one like it with an item replaced."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks.glue.compat import misconfigured, warn
from groupcam_aug.cam import is_channels_last
from groupcam_aug.extra import Extra, read_extra
from groupcam_aug.saliency import GroupCAM

__all__ = [
    "BatchKey",
    "ExtraKeys",
    "Step",
    "batch_generator",
    "check_batch_images",
    "check_extra_keys",
    "check_keys",
    "describe",
    "get_item",
    "has_run_out",
    "read_batch",
    "read_batch_extra",
    "replace_item",
    "warn_of_several_labels",
]

BatchKey = int | str | Sequence[int | str] | tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]

ExtraKeys = list[BatchKey] | dict[str, BatchKey]


class Step(NamedTuple):
    """What a batch hands to the later hooks of its step."""

    number: int  # of the training batch, from 0
    due: int = 0  # images that might have been drawn; 0 where the step was not due
    images: Tensor = torch.empty(0)  # (N, C, H, W) before the augmentation; none where no image was drawn, as below
    targets: Any = None
    result: Augmented | None = None
    kept: Tensor | None = None  # (4,) int64, `object_masks.count_kept`; None without object masks


def get_item(batch: Any, key: BatchKey) -> Any:
    """The item of a batch under a key.

    Args:
        batch: sequence, mapping, object with attributes, or a bare tensor (which is its own item 0).
        key: index, key or attribute name; several of them for a nested batch; or a (getter, setter) pair.

    Returns:
        The item; None where a container on the way to it is None.

    Raises:
        KeyError: nothing there; the message lists what the batch holds.
    """
    if _is_pair(key):
        return key[0](batch)  # type: ignore[index,operator]
    for step in _path(key):
        if batch is None or (isinstance(batch, Tensor) and step == 0):
            continue
        try:
            if isinstance(batch, Tensor):
                raise KeyError(step)  # rows of a tensor are no items of a batch
            batch = batch[step] if _has_items(batch, step) else getattr(batch, str(step))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise KeyError(f"{step!r} is not in the batch, which holds {describe(batch)}") from None
    return batch


def read_batch(trainer: Any, batch: Any, image_key: BatchKey, target_key: BatchKey | None, who: str) -> tuple[Tensor, Any]:
    """Images (N, C, H, W) and targets of a batch; no targets (None) without a key for them, or of a bare tensor.

    Args:
        trainer: of the fit.
        batch: as `training_step` would get it.
        image_key: where the images are.
        target_key: where the targets are.
        who: the callback's name, for messages.

    Raises:
        MisconfigurationException: nothing under a key, or something else than images or targets; the message says what is there.
    """
    try:
        images = get_item(batch, image_key)
        targets = None if target_key is None or isinstance(batch, Tensor) else get_item(batch, target_key)
    except KeyError as error:
        raise misconfigured(
            trainer,
            f"{error.args[0]}. Say where images and labels are: {who}(image_key=..., target_key=...), with target_key=None to "
            "explain the network's own first choice",
        ) from None
    if isinstance(targets, Mapping):
        raise misconfigured(
            trainer,
            f"target_key={target_key!r} gives {describe(targets)}, not labels: name them with target_key=[{target_key!r}, ...]",
        )
    words = targets[:1] if isinstance(targets, list | tuple) else [targets]
    if any(isinstance(word, str | bytes) for word in words) or (targets is None and has_run_out(batch, target_key)):
        raise misconfigured(
            trainer,
            f"target_key={target_key!r} gives {targets!r:.60}, not labels: number the classes in the dataset, or take "
            "target_key=None to explain the network's own first choice",
        )
    return check_batch_images(trainer, images, batch, image_key, "or scale and normalise them before training_step"), targets


def read_batch_extra(trainer: Any, batch: Any, keys: ExtraKeys | None, images: Tensor, who: str) -> Extra:
    """What the network takes beside the images of a batch.

    Args:
        trainer: of the fit.
        batch: as `training_step` would get it.
        keys: where it is: a list of keys, for positional arguments, or the key of each keyword argument. None: nothing.
        images: (N, C, H, W) of the batch.
        who: the callback's name, for messages.

    Raises:
        MisconfigurationException: nothing under a key, or something else than one row per image; the message says what is there.
    """
    if not keys:
        return read_extra(None, images)
    try:
        if isinstance(keys, Mapping):
            return read_extra({name: get_item(batch, key) for name, key in keys.items()}, images)
        return read_extra([get_item(batch, key) for key in keys], images)
    except KeyError as error:
        raise misconfigured(
            trainer, f"{error.args[0]}. Say where the network's further inputs are: {who}(extra_keys=...)"
        ) from None
    except (TypeError, ValueError) as error:
        raise misconfigured(trainer, f"extra_keys={keys!r}: {error}. The batch holds {describe(batch)}") from error


def check_batch_images(trainer: Any, images: Any, batch: Any, image_key: BatchKey, instead: str) -> Tensor:
    """The images, if they are a floating-point batch (N, C, H, W); `instead` says what helps besides naming others.

    Raises:
        MisconfigurationException: something else, or channels last; the message says what is there.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise misconfigured(
            trainer,
            f"image_key={image_key!r} gives {describe(images)}, not floating-point images (N, C, H, W); the batch holds "
            f"{describe(batch)}. Name the images with image_key=, {instead}",
        )
    if is_channels_last(images):
        raise misconfigured(
            trainer,
            f"image_key={image_key!r} gives images {tuple(images.shape)} with the channels last: bring them to (N, C, H, W) "
            "before training_step, with images.permute(0, 3, 1, 2)",
        )
    return images


def has_run_out(batch: Any, *keys: BatchKey | None) -> bool:
    """Whether a loader of several has run out: its part of the batch is None then, with `CombinedLoader(..., "max_size")`."""
    try:
        return any(get_item(batch, key) is None for key in keys if key is not None)
    except KeyError:  # nothing there at all: `read_batch` says so
        return False


def check_keys(**keys: Any) -> None:
    """Raise a TypeError unless each is a `BatchKey` or, but for `image_key`, None."""
    for name, key in keys.items():
        optional = name != "image_key"
        if (key is None and optional) or _is_pair(key):
            continue
        steps = key if isinstance(key, list | tuple) and key else [key]
        if not all(isinstance(step, int | str) and not isinstance(step, bool) for step in steps):
            raise TypeError(
                f"{name} must be an index, a key, a list of them{', ' if optional else ' or '}a (getter, setter) pair"
                f"{' or None' if optional else ''}; got {key!r}"
            )


def check_extra_keys(keys: Any) -> None:
    """Raise a TypeError unless these are `ExtraKeys` or None."""
    if keys is not None and not isinstance(keys, list | tuple | dict):
        raise TypeError(
            f"extra_keys must be a list of keys (positional arguments), a dict {{argument: key}}, or None; got {keys!r}"
        )
    named = keys if isinstance(keys, dict) else {f"[{i}]": key for i, key in enumerate(keys or ())}
    for name, key in named.items():
        if not isinstance(name, str) or key is None:
            raise TypeError(f"extra_keys must hold keys of the batch, by the names of arguments if it is a dict; got {keys!r}")
        check_keys(**{f"extra_keys{name}" if name.startswith("[") else f"extra_keys[{name!r}]": key})


def replace_item(batch: Any, key: BatchKey, value: Any) -> Any:
    """A batch like `batch` with one item replaced; the containers on the way are copied, nothing is written in place.

    Raises:
        TypeError: a container that can be neither copied nor set; use a (getter, setter) pair.
    """
    if _is_pair(key):
        result = key[1](batch, value)  # type: ignore[index,operator]
        return batch if result is None else result
    return _replaced(batch, _path(key), value)


def batch_generator(seed: int, rank: int, number: int) -> torch.Generator:
    """One stream of random numbers per (seed, rank, batch): resuming in the middle of an epoch repeats it, no state is stored."""
    digest = hashlib.blake2b(f"{seed} {rank} {number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def warn_of_several_labels(trainer: Any, cam: GroupCAM, targets: Any) -> None:
    """Warn of rows of targets that look like several labels an image, where scores are those of one."""
    scored = isinstance(targets, Tensor) and targets.ndim == 2 and cam.layer_shape and cam.activation == "softmax"
    if scored and bool((targets.float().sum(dim=1) > 1.01).any()):
        warn(
            trainer,
            "rows of labels sum to more than 1: with several labels an image GroupCAMAugmentation(activation='sigmoid') "
            "scores each class by itself; now all share one softmax",
        )


def describe(batch: Any) -> str:
    """What a batch holds, for error messages: keys or positions, with kinds and shapes."""
    if isinstance(batch, Tensor):
        return f"a {str(batch.dtype).removeprefix('torch.')} tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {_kind(value)}" for key, value in batch.items()) + "}"
    if hasattr(batch, "_fields"):
        return f"{type(batch).__name__}(" + ", ".join(f"{name}: {_kind(getattr(batch, name))}" for name in batch._fields) + ")"
    if isinstance(batch, list | tuple):
        return "[" + ", ".join(f"{i}: {_kind(value)}" for i, value in enumerate(batch)) + "]"
    return (
        f"{type(batch).__name__}(" + ", ".join(f"{k}: {_kind(v)}" for k, v in vars(batch).items()) + ")"
        if hasattr(batch, "__dict__")
        else _kind(batch)
    )


def _replaced(batch: Any, path: Sequence[int | str], value: Any) -> Any:
    if not path or (isinstance(batch, Tensor) and path[0] == 0):
        return value
    step, rest = path[0], path[1:]
    inner = _replaced(get_item(batch, step), rest, value)
    if hasattr(batch, "_replace"):
        return batch._replace(**{batch._fields[step] if isinstance(step, int) else step: inner})
    if isinstance(batch, tuple):
        return type(batch)(inner if i == int(step) % len(batch) else item for i, item in enumerate(batch))
    try:
        twin = copy.copy(batch)
        if _has_items(batch, step):
            twin[step] = inner
        else:
            setattr(twin, str(step), inner)
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"cannot replace {step!r} in a batch of type {type(batch).__name__} ({error}); give image_key=(getter, setter) "
            "with setter(batch, images) returning the new batch"
        ) from error
    return twin


def _is_pair(key: BatchKey) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and all(callable(part) for part in key)


def _path(key: BatchKey) -> Sequence[int | str]:
    return [key] if isinstance(key, int | str) else list(key)  # type: ignore[arg-type]


def _has_items(batch: Any, step: int | str) -> bool:
    return isinstance(batch, Mapping) or (isinstance(step, int) and hasattr(batch, "__getitem__"))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return describe(value).removeprefix("a ")
    return type(value).__name__
