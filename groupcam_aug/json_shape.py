"""What JSON from elsewhere has to look like: a shape in plain Python, and where content does not fit it, in words."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["fitting", "misfit"]

LARGEST = 1e15  # of a number: what is larger is damage, and overflows where it is added up
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """Where a value does not fit its shape, in words; None if it fits.

    Args:
        value: as `json.loads` gives it.
        shape: `int`, `float` (a finite number), `str`, `bool`, None or `object` (anything); `[shape]`: a list of such;
            `[shape, shape]`: a list of just two, and so on; `{...: shape}`: a mapping of any names to such;
            `{"name": shape}`: a mapping with at least these names, where "name?" may be missing; `(shape, shape)`: one of them.
        name: of the value, for the words.
    """
    if isinstance(shape, tuple):
        problems = [misfit(value, one, name) for one in shape]
        return None if None in problems else max(problems, key=lambda problem: len(problem or ""))  # the deepest
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _not(value, "a list", name)
        if len(shape) not in (1, len(value)):
            return _not(value, f"a list of {len(shape)}", name)
        shapes = shape * len(value) if len(shape) == 1 else shape
        pairs = enumerate(zip(value, shapes, strict=True))
        return next((found for i, (one, of) in pairs if (found := misfit(one, of, f"{name}[{i}]"))), None)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _not(value, "a mapping", name)
        if ... in shape:
            return next((found for key, one in value.items() if (found := misfit(one, shape[...], f"{name}.{key}"))), None)
        for key, one in shape.items():
            bare = key.removesuffix("?")
            if bare not in value:
                if bare == key:
                    return f"there is no {f'{name}.{key}'.lstrip('.')}"
            elif found := misfit(value[bare], one, f"{name}.{bare}"):
                return found
        return None
    if shape is object:
        return None
    if shape in (int, float):
        is_number = isinstance(value, (int, shape)) and not isinstance(value, bool)
        fits = is_number and abs(value) <= LARGEST and math.isfinite(value)
    else:
        fits = value is None if shape is None else isinstance(value, shape)
    return None if fits else _not(value, _WORDS[shape], name)


def fitting(content: dict[str, Any], shape: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The parts of a mapping that fit, with those that the shape does not name, and what is wrong with the others, in words."""
    kept, problems = dict(content), []
    for key, one in shape.items():
        bare = key.removesuffix("?")
        if bare in content and (problem := misfit(content[bare], one, bare)):
            problems.append(problem)
            del kept[bare]
    return kept, problems


def _not(value: Any, words: str, name: str) -> str:
    shown = repr(value)
    return f"{name.lstrip('.') or 'the content'} is {shown if len(shown) <= 40 else shown[:39] + '…'}, not {words}"
