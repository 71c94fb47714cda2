"""What a user's module or data module says of its data: attributes that may be missing, of any kind, or not readable yet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

__all__ = ["attribute", "class_names"]


def attribute(source: Any, name: str) -> Any:
    """The attribute of a user's object; None where it has none, or where reading it fails, which is warned of."""
    try:
        return getattr(source, name, None)
    except Exception as error:  # a property, of which anything may be expected
        warnings.warn(
            f"{type(source).__name__}.{name} cannot be read ({type(error).__name__}: {error}): pictures and report go without",
            stacklevel=2,
        )
        return None


def class_names(value: Any) -> list[str] | None:
    """Names by class, of what a user calls `class_names`.

    Args:
        value: a list, tuple, array or tensor of words or numbers, or a mapping from 0, 1, ... to them.

    Returns:
        The names; None for anything else, such as a number of classes, or a set, which has no order.
    """
    if isinstance(value, Mapping) and set(value) == set(range(len(value))):
        value = [value[i] for i in range(len(value))]
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str | int) for name in value):
        return None
    return [str(name) for name in value]
