"""How a training batch is reached and rebuilt on its way to `training_step`.

Lightning has no hook that lets a callback replace a batch. `strategy.batch_to_device` is the last thing that happens to one:
behind it stand the precision conversion and every transfer hook of the user, in front of it `training_step`. So one
`Dispatcher` per strategy takes its place, on the strategy object only, and hands each batch to its owners. The user's module
and data are never touched: no method is patched, no tensor written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["BatchKey", "Dispatcher", "describe", "get_item", "replace_item"]

BatchKey = int | str | Sequence[int | str] | tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]


class Dispatcher:
    """Stands in for `strategy.batch_to_device` and passes each batch through its owners, in the order they came.

    All owners share one dispatcher, and each leaves in its own time: the last one out puts the original back. If somebody
    else has wrapped the method since, the dispatcher stays below as a pass-through.
    """

    def __init__(self, strategy: Any) -> None:
        self.original = strategy.batch_to_device
        self.own = "batch_to_device" in vars(strategy)  # whether it was already replaced on the object
        self.owners: list[Callable[[Any], Any]] = []
        self.last: Any = None  # the batch handed out, until the step has checked that it arrived

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The batch on its device, as the owners leave it."""
        batch = self.original(batch, *args, **kwargs)
        for owner in list(self.owners):
            batch = owner(batch)
        self.last = batch
        return batch

    @classmethod
    def attach(cls, strategy: Any, owner: Callable[[Any], Any]) -> Dispatcher:
        """Let `owner` (batch -> batch) see every batch of `strategy`, once however often it asks."""
        dispatcher = vars(strategy).get("_groupcam_dispatcher")
        if dispatcher is None or (not dispatcher.owners and vars(strategy).get("batch_to_device") is not dispatcher):
            dispatcher = cls(strategy)  # an old one without owners may have been cut off by whoever put back what he had found
            strategy._groupcam_dispatcher = strategy.batch_to_device = dispatcher
        if owner not in dispatcher.owners:
            dispatcher.owners.append(owner)
        return dispatcher

    @classmethod
    def detach(cls, strategy: Any, owner: Callable[[Any], Any]) -> None:
        """Undo `attach`; harmless if there is nothing to undo."""
        dispatcher = vars(strategy).get("_groupcam_dispatcher")
        if dispatcher is None:
            return
        if owner in dispatcher.owners:
            dispatcher.owners.remove(owner)
        if dispatcher.owners:
            return
        dispatcher.last = None
        if vars(strategy).get("batch_to_device") is dispatcher:
            if dispatcher.own:
                strategy.batch_to_device = dispatcher.original
            else:
                del strategy.batch_to_device
            del strategy._groupcam_dispatcher


def get_item(batch: Any, key: BatchKey) -> Any:
    """The item of a batch under a key.

    Args:
        batch: sequence, mapping, object with attributes, or a bare tensor (which is its own item 0).
        key: index, key or attribute name; several of them for a nested batch; or a (getter, setter) pair.

    Raises:
        KeyError: nothing there; the message lists what the batch holds.
    """
    if _is_pair(key):
        return key[0](batch)  # type: ignore[index,operator]
    for step in _path(key):
        if isinstance(batch, Tensor) and step == 0:
            continue
        try:
            if isinstance(batch, Tensor):
                raise KeyError(step)  # rows of a tensor are no items of a batch
            batch = batch[step] if _has_items(batch, step) else getattr(batch, str(step))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise KeyError(f"{step!r} is not in the batch, which holds {describe(batch)}") from None
    return batch


def replace_item(batch: Any, key: BatchKey, value: Any) -> Any:
    """A batch like `batch` with one item replaced; the containers on the way are copied, nothing is written in place.

    Raises:
        TypeError: a container that can be neither copied nor set; use a (getter, setter) pair.
    """
    if _is_pair(key):
        result = key[1](batch, value)  # type: ignore[index,operator]
        return batch if result is None else result
    return _replaced(batch, _path(key), value)


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
        assert isinstance(step, int)  # for the type checker: get_item found something under it
        items = [*batch]
        items[step] = inner
        return type(batch)(items)
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
