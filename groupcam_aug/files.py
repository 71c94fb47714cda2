"""Files that a crash leaves whole: JSON lines, and files that are exchanged rather than written over.

A folder may come from elsewhere. Links in it are neither written through nor read where they leave the folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["add_line", "all_lines", "inside", "put_file", "read_lines", "replacing", "those_that_hold"]

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # neither is known everywhere


def add_line(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Append one JSON object to `folder/NAME.jsonl`, in a single write.

    Args:
        folder: made if missing.
        name: of the file, without its ending.
        values: numbers, strings, lists and mappings of them; tensors and arrays become lists, NaN and infinities null.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    if path.is_symlink():
        raise OSError(f"{str(path)!r} is a link, which is not written through: put a file in its place")
    line = json.dumps(_plain(values), allow_nan=False, separators=(",", ":")) + "\n"
    with open(path, "a+b", buffering=0, opener=lambda name, flags: os.open(name, flags | _NO_LINK, 0o666)) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line  # a process was killed while it wrote the line before: let that one end here
        file.write(line.encode())


def put_file(folder: Path, name: str, content: bytes | str) -> None:
    """Write `folder/name` so that a reader, or a crash, meets the old file or the new one and never a part.

    Args:
        folder: made if missing, like folders within `name`.
        name: of the file, relative to the folder.
        content: bytes, or text (written as UTF-8; names of files that are not UTF-8 as they are).

    Raises:
        OSError: it cannot be written, and the old file stands; or a folder within `name` is a link that leaves the folder.
    """
    path = folder / name
    inside(folder, path.parent)
    with replacing(path) as part:
        part.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path` to write to, which takes its place at the end; after an error the old file stands.

    Args:
        path: of the file in the end; its folder is made if missing.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{secrets.token_hex(8)}.part")  # nobody can have placed a link there
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666))
        try:
            yield part
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:  # of a full disk names no file, others that of the part
        raise OSError(error.errno, error.strerror, str(path)) from error


def inside(folder: Path, path: Path) -> Path:
    """`path`, which is in `folder`, links in it followed.

    Raises:
        OSError: it is a link, or lies behind one, that leaves the folder.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(f"{str(path)!r} is a link that leaves the folder, and is not followed: put a file in its place")
    return path


def read_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of `folder/NAME.jsonl` that hold, in order; none if there is no such file.

    A run that is resumed, or started again in the same folder, goes back to an earlier epoch: its lines replace those of that
    epoch and of all later ones. Of several lines with the same "epoch" the last holds. Lines torn by a crash are left out.

    Raises:
        OSError: the file is a link that leaves the folder.
    """
    return those_that_hold(all_lines(folder, name))


def all_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of `folder/NAME.jsonl`, those that do not hold any more among them; otherwise as `read_lines`."""
    path = inside(folder, folder / f"{name}.jsonl")
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # empty, or torn
        if isinstance(line, dict):
            lines.append(line)
    return lines


def those_that_hold(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the lines that hold, see `read_lines`."""
    held: list[dict[str, Any]] = []
    for line in lines:
        epoch = line.get("epoch")
        if _is_number(epoch):
            while held and _is_number(held[-1].get("epoch")) and held[-1]["epoch"] >= epoch:
                held.pop()
        held.append(line)
    return held


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
