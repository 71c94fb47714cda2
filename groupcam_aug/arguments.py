"""Checks of public arguments, one style for all: a `ValueError` that names the argument, what it takes and what came."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any

__all__ = [
    "changed_options",
    "check_callable",
    "check_choice",
    "check_flag",
    "check_name",
    "check_number",
    "check_output",
    "check_seed",
    "check_whole",
]


def check_whole(name: str, value: Any, least: int = 0, *, optional: bool = False) -> None:
    """A whole number of at least `least`, of Python or NumPy; None too, if `optional`. No bool, and no 2.0."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}{_or_none(optional)}, got {value!r}")


def check_seed(seed: Any) -> None:
    """A seed of torch's generators: a whole number from 0 to 2**63 - 1."""
    check_whole("seed", seed)
    if seed >= 2**63:
        raise ValueError(f"seed must be a whole number below 2**63, got {seed!r}")


def check_callable(name: str, value: Any) -> None:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable or None, got {value!r:.60}")


def check_output(output: Any) -> None:
    """What picks the logits out of what a network returns: a key, an index, a callable or None."""
    if output is not None and not callable(output) and (isinstance(output, bool) or not isinstance(output, int | str)):
        raise TypeError(f"output must be a key, an index, an attribute's name, a callable or None, got {output!r:.60}")


def check_number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    above: bool = False,
    optional: bool = False,
) -> None:
    """A number from `low` (above it, if `above`) to `high`; None too, if `optional`. No bool, NaN or infinity."""
    if optional and value is None:
        return
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if real and low <= value <= high and not (above and value == low):
        return
    bounds = f"{'above' if above else 'of at least' if math.isinf(high) else 'from'} {low:g}"
    bounds += "" if math.isinf(high) else f"{' and at most' if above else ' to'} {high:g}"
    raise ValueError(f"{name} must be a number {bounds}{_or_none(optional)}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """True or False; a word such as "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[Any], *, or_callable: bool = False) -> None:
    """One of `choices`; or a callable, if that is allowed."""
    if or_callable and callable(value):
        return
    if not any(isinstance(value, type(choice)) and not isinstance(value, bool) and value == choice for choice in choices):
        words = f"{', '.join(map(repr, choices))}{' or a callable' if or_callable else ''}"
        raise ValueError(f"{name} must be one of {words}; got {value!r}")


def changed_options(function: Callable[..., Any], values: Mapping[str, Any]) -> list[str]:
    """The options of a function that do not have their defaults, as "name=value"; classes and functions by name.

    Args:
        function: whose parameters with a default are its options.
        values: of the options, by name; what is not there is left out.
    """
    words = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = values.get(name, parameter.default)
        plain = value is None or isinstance(value, bool | int | float | str | list | tuple | PathLike)
        if parameter.default is parameter.empty or value is parameter.default or (plain and value == parameter.default):
            continue
        words.append(f"{name}={value!r}" if plain else f"{name}={getattr(value, '__name__', type(value).__name__)}")
    return words


_SUCH_AS = {"network": "model", "layer": "layer4", "mask_at": "layer4"}  # of a callback, which is made before the network


def check_name(name: str, value: Any, what: str = "a name") -> None:
    """A word, or None."""
    if value is not None and not isinstance(value, str):
        hint = f": write its name in the LightningModule, such as {name}={_SUCH_AS[name]!r}" if name in _SUCH_AS else ""
        raise TypeError(f"{name} must be {what} (str) or None, got {type(value).__name__}{hint}")


def _or_none(optional: bool) -> str:
    return " or None" if optional else ""
