"""Files that a command writes into a folder of the user's: none that is not its own is written over."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from groupcam_aug.files import add_line, all_lines, put_file
from groupcam_aug.json_shape import misfit

__all__ = ["WrittenFiles"]


class WrittenFiles:
    """A folder, and what earlier calls of the same command wrote there: that may be written again, unless it was changed since.

    Args:
        folder: made with the first file.
        name: of the command; what it writes is listed in the hidden file `.NAME.jsonl`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._list = folder, f".{name}"
        self._known = {(line.get("file"), line.get("crc32")) for line in all_lines(folder, self._list)}

    def adopt(self, names: Sequence[str], shape: Any) -> None:
        """Take the files of a version that kept no list for the command's own.

        Args:
            names: of the files; the first tells whose they are.
            shape: of its JSON, as `misfit` takes it.
        """
        if self._known or not (self.folder / names[0]).is_file():
            return
        try:
            is_ours = misfit(json.loads((self.folder / names[0]).read_text(encoding="utf-8")), shape) is None
        except (ValueError, RecursionError):
            is_ours = False
        if is_ours:
            paths = [self.folder / name for name in names]
            self._known = {(path.name, zlib.crc32(path.read_bytes())) for path in paths if path.is_file()}

    def check(self, names: Iterable[str]) -> None:
        """Before anything is written.

        Raises:
            FileExistsError: there is a file of that name that the command did not write.
        """
        for name in names:
            path = self.folder / name
            if path.is_symlink() or (path.exists() and (name, zlib.crc32(path.read_bytes())) not in self._known):
                raise FileExistsError(
                    f"{str(path)!r} is there and would be overwritten: give another folder by --out, or move it away"
                )

    def remove(self, name: str) -> None:
        """Delete a file of the command's own, if it is there; raises as `check` does."""
        self.check([name])
        (self.folder / name).unlink(missing_ok=True)

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        mine = {"file": name, "crc32": zlib.crc32(content)}
        add_line(self.folder, self._list, mine)  # first, so that no file goes unlisted
        self._known.add((name, mine["crc32"]))
        put_file(self.folder, name, content)
