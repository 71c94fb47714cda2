"""Links in Markdown: found, and made absolute for pages that leave the repository, such as the README on PyPI."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from posixpath import normpath

__all__ = ["absolute", "address", "rewritten", "targets"]

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_TARGET = re.compile(r'\]\((?P<inline>[^()\s]+)\)|\b(?:src|srcset|href)="(?P<html>[^"\s]+)"')


def _matches(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is an image) of each target outside code: of `[...](target)` and of HTML attributes."""
    text = _CODE.sub(lambda code: "x" * len(code[0]), text)
    for match in _TARGET.finditer(text):
        place = "inline" if match["inline"] else "html"
        yield *match.span(place), _is_image(text, match.start()) if place == "inline" else match[0].startswith("src")


def _is_image(text: str, end: int) -> bool:
    """Whether the bracket that closes at `end` was opened by `![`; brackets may hold others, as in a badge that is a link."""
    depth, at = 1, end
    while depth and at:
        at -= 1
        depth += {"]": 1, "[": -1}.get(text[at], 0)
    return text[max(at - 1, 0)] == "!"


def targets(text: str) -> list[str]:
    """What a page links to, in order: addresses, paths, `#anchors`."""
    return [text[start:end] for start, end, _ in _matches(text)]


def rewritten(text: str, change: Callable[[str, bool], str]) -> str:
    """`text` with each target replaced by `change(target, whether it is an image)`."""
    parts, at = [], 0
    for start, end, image in _matches(text):
        parts += [text[at:start], change(text[start:end], image)]
        at = end
    return "".join([*parts, text[at:]])


def address(target: str, image: bool, repository: str, folder: str = ".") -> str:
    """The address of what `target` names in a page of the repository; addresses and `#anchors` as they are.

    Args:
        target: as it stands in the page.
        image: whether it is shown rather than linked.
        repository: address of the repository, such as "https://github.com/somebody/something".
        folder: where the page is, from the repository's root.
    """
    if "://" in target or target.startswith(("#", "mailto:")):
        return target
    return f"{repository}/{'raw' if image else 'blob'}/main/{normpath(f'{folder}/{target}')}"


def absolute(text: str, repository: str, folder: str = ".") -> str:
    """`text` of a page in `folder` of the repository with addresses in place of relative paths."""
    return rewritten(text, lambda target, image: address(target, image, repository, folder))
