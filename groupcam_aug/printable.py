"""Text from files, classes and errors made fit to be shown: on a terminal, and to others."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["printable", "without_secrets"]

_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of surrogate pairs, separators of lines and paragraphs
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # change the order in which text is read
_SECRET = re.compile(r"(?i)((?:token|secret|passw(?:or)?d|api[-_]?key)[\w-]*[\"']*(?:\s*[=:]\s*|\s+)[\"']*)[^\s\"',}&]+")
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")


def printable(text: object) -> str:
    r"""The text with everything that steers a terminal written out, "\\x1b" for an escape; tabs and line ends stay.

    Args:
        text: anything; `str` of it is taken.
    """
    return "".join(
        _written(letter) if letter in _TURNING or (unicodedata.category(letter) in _ESCAPED and letter not in "\t\n") else letter
        for letter in str(text)
    )


def without_secrets(text: str) -> str:
    """The text with `***` for what looks like a secret: after `token=`, `--api_key` and such, before `@` in an address."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))


def _written(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
