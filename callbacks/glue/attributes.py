"""What a user's module or data module says of its data: attributes that may be missing, of any kind, or not readable yet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["attribute", "check_style", "class_names"]


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


def check_style(names: Any, mean: Any, std: Any) -> None:
    """Whether arguments say how pictures are to be shown; what is read from a user's object may say anything.

    Raises:
        TypeError: names that are no list of words.
        ValueError: mean or std without the other, or no numbers; a std of 0.
    """
    if names is not None and (class_names(names) is None or not all(isinstance(name, str) for name in names)):
        raise TypeError(f"class_names must be a list of names, one per class, got {names!r}")
    if (mean is None) != (std is None):
        raise ValueError("give both mean and std, or neither")
    for name, value, least in (("mean", mean, -torch.inf), ("std", std, 0.0)):
        try:
            usable = value is None or bool((found := torch.as_tensor(value)).isfinite().all() and (found > least).all())
        except (TypeError, ValueError, RuntimeError):  # of anything that is no number
            usable = False
        if not usable:
            raise ValueError(
                f"{name} must be numbers{' above 0' * (name == 'std')}, one per channel or one for all; got {value!r}"
            )
