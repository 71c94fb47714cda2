"""Files that a crash leaves whole: JSON lines, and files that are exchanged rather than written over."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["add_line", "put_file", "read_lines", "replacing"]


def add_line(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Append one JSON object to `folder/NAME.jsonl`, in a single write.

    Args:
        folder: made if missing.
        name: of the file, without its ending.
        values: numbers, strings, lists and mappings of them; tensors and arrays become lists, NaN and infinities null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    line = json.dumps(_plain(values), allow_nan=False, separators=(",", ":")) + "\n"
    with path.open("a+b", buffering=0) as file:
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
    """
    with replacing(folder / name) as part:
        part.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path` to write to, which takes its place at the end; after an error the old file stands.

    Args:
        path: of the file in the end; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody can guess, in a file that was not there: a link laid in its place is never followed.
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield part
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def read_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of `folder/NAME.jsonl` that hold, in order; none if there is no such file.

    A run that is resumed, or started again in the same folder, goes back to an earlier epoch: its lines replace those of that
    epoch and of all later ones. Of several lines with the same "epoch" the last holds. Lines torn by a crash are left out.
    """
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # empty, or torn
        if not isinstance(line, dict):
            continue
        epoch = line.get("epoch")
        if epoch is not None:
            while lines and lines[-1].get("epoch") is not None and lines[-1]["epoch"] >= epoch:
                lines.pop()
        lines.append(line)
    return lines


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
