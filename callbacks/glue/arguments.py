"""A callback that is nothing but its arguments until a fit begins: written once for repr, copies and spawned processes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from groupcam_aug.callbacks.glue.compat import Callback

__all__ = ["ConfiguredCallback", "plain_values"]


class ConfiguredCallback(Callback):
    """A `Callback` that remembers how it was made.

    Only the arguments travel, into copies and to spawned processes; what a fit has built stays behind. `repr` shows the
    arguments that differ from their defaults, so that evaluating it makes the same callback again. Subclasses with another
    `__init__` need nothing more.
    """

    _call: tuple[tuple[Any, ...], dict[str, Any]]
    _hidden: tuple[str, ...] = ()  # keyword arguments too large to be shown

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments, as `__init__` will take them."""
        self = super().__new__(cls)
        self._call = args, kwargs
        return self

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave a mark in the checkpoint, so that Lightning tells whoever goes on without this callback that it is missing.

        Not a `state_dict`: of callbacks with one Lightning allows a single one of a kind.
        """
        checkpoint.setdefault("callbacks", {}).setdefault(self.state_key, {"used": True})

    def __repr__(self) -> str:
        args, kwargs = self._call
        parameters = inspect.signature(type(self).__init__).parameters
        in_order = [*(name for name in parameters if name in kwargs), *(name for name in kwargs if name not in parameters)]
        changed = [name for name in in_order if name not in parameters or not _is_default(kwargs[name], parameters[name].default)]
        words = [f"{name}={'...' if name in self._hidden else repr(kwargs[name])}" for name in changed]
        return f"{type(self).__name__}({', '.join([*map(repr, args), *words])})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Only the arguments travel."""
        return _make, (type(self), *self._call)


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON holds them: numbers, words and None as they are, anything else by its name or kind."""
    plain = (int, float, str, type(None))
    return {
        name: value if isinstance(value, plain) else getattr(value, "__name__", type(value).__name__)
        for name, value in values.items()
    }


def _make(kind: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kind(*args, **kwargs)


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not hasattr(value, "shape") and value == default)
