"""Files that a command writes into a folder of the user's: none that is not its own is written over."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from groupcam_aug.files import add_line, all_lines, put_file

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

    def check(self, names: Iterable[str]) -> None:
        """Before anything is written.

        Raises:
            FileExistsError: there is a file of that name that the command did not write.
        """
        for name in names:
            path = self.folder / name
            if path.is_symlink() or (path.exists() and (name, zlib.crc32(path.read_bytes())) not in self._known):
                raise FileExistsError(f"{str(path)!r} is there and would be overwritten: give another folder by --out")

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        add_line(self.folder, self._list, {"file": name, "crc32": zlib.crc32(content)})  # first, so that no file goes unlisted
        put_file(self.folder, name, content)
