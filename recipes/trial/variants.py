"""Names with changes, ``NAME,key=value,...``, for tables of frozen dataclasses: a variant needs no new code."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from groupcam_aug.recipes.cli import nearest

__all__ = ["changed", "read_variant"]

_T = TypeVar("_T")


def read_variant(text: str, table: Mapping[str, _T], noun: str, keys: Sequence[str] | None = None) -> _T:
    """The row of a table that `text` names, with its changes.

    Args:
        text: "NAME" or "NAME,key=value,...".
        table: rows (frozen dataclasses) by name.
        noun: what a row is, for errors.
        keys: fields that may be changed. Default: all.

    Raises:
        ValueError: an unknown name or key (near ones are suggested), a key given twice, a value of another kind, or one that the
            dataclass refuses.
    """
    name, *changes = (part.strip() for part in text.split(","))
    if name not in table:
        raise ValueError(f"no {noun} {name!r}{nearest(name, table)}; known: {', '.join(table)}")
    row: Any = table[name]
    hints = get_type_hints(type(row))
    keys = [field.name for field in dataclasses.fields(row)] if keys is None else keys
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, word = (part.strip() for part in change.partition("="))
        if not equals or not word:
            raise ValueError(f"{noun} {text!r}: {change!r} is not key=value")
        if key not in keys:
            known = ", ".join(keys) or "nothing"
            raise ValueError(f"{noun} {text!r}: {name} takes no {key!r}{nearest(key, keys)} (it takes {known})")
        if key in values:
            raise ValueError(f"{noun} {text!r}: {key} is given twice")
        try:
            values[key] = _read(word, hints[key])
        except ValueError:
            raise ValueError(f"{noun} {text!r}: {key} must be {_told(hints[key])}, got {word!r}") from None
    try:
        return dataclasses.replace(row, **values) if values else row
    except ValueError as error:
        raise ValueError(f"{noun} {text!r}: {error}") from None


def changed(row: Any, other: Any, keys: Sequence[str]) -> str:
    """The fields among `keys` in which `row` differs from `other`, as ``,key=value,...``."""
    differing = [key for key in keys if getattr(row, key) != getattr(other, key)]
    return "".join(f",{key}={_write(getattr(row, key))}" for key in differing)


def _read(word: str, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        for one in get_args(hint):
            try:
                return _read(word, one)
            except ValueError:
                continue
        raise ValueError(word)
    if hint is type(None):
        if word != "none":
            raise ValueError(word)
        return None
    if get_origin(hint) is Literal:
        if word not in get_args(hint):
            raise ValueError(word)
        return word
    if hint is bool:
        if word not in ("true", "false"):
            raise ValueError(word)
        return word == "true"
    value = hint(word)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(word)
    return value


def _told(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_told(one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "'none'", str: "a word"}
    return names.get(hint, str(hint))


def _write(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
