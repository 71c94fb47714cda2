"""A callback that is nothing but its arguments until a fit begins: written once for repr, copies and spawned processes."""

from __future__ import annotations

import inspect
from typing import Any

from groupcam_aug.callbacks.glue.compat import Callback

__all__ = ["ConfiguredCallback"]


class ConfiguredCallback(Callback):
    """A `Callback` that remembers how it was made.

    Only the arguments travel, into copies and to spawned processes; what a fit has built stays behind. `repr` shows the
    arguments that differ from their defaults, so that evaluating it makes the same callback again. Subclasses with another
    `__init__` need nothing more.
    """

    _arguments: dict[str, Any]
    _hidden: tuple[str, ...] = ()  # arguments too large to be shown

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Remember the arguments, defaults among them, as `__init__` will take them."""
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return self  # `__init__` is about to say what is wrong, in its own words
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in [*bound.arguments.items()][1:]:
            kind = signature.parameters[name].kind
            arguments |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        self._arguments = arguments
        return self

    def __repr__(self) -> str:
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self).__init__).parameters.items()}
        changed = {name: value for name, value in self._arguments.items() if not _is_default(value, defaults.get(name, self))}
        words = (f"{name}={'...' if name in self._hidden else repr(value)}" for name, value in changed.items())
        return f"{type(self).__name__}({', '.join(words)})"

    def plain_arguments(self) -> dict[str, Any]:
        """The arguments as JSON holds them: numbers, words and None as they are, anything else by its name or kind."""
        plain = (int, float, str, type(None))
        return {
            name: value if isinstance(value, plain) else getattr(value, "__name__", type(value).__name__)
            for name, value in self._arguments.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Only the arguments travel."""
        return _make, (type(self), self._arguments)


def _make(kind: type, arguments: dict[str, Any]) -> Any:
    return kind(**arguments)


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not hasattr(value, "shape") and value == default)
