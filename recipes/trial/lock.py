"""One trial at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trials out of a folder, which is made if missing; however the process ends, it is free again.

    The lock is on the file `.trial.lock`, which holds the process's number and stays. It is the process's alone: workers that
    load data do not hold it any longer than that one lives. Where the system knows no such locks, the file itself is the lock,
    and one that a killed process left has to be deleted.

    Raises:
        FileExistsError: another process runs a trial there.
        OSError: the file cannot be made or locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".trial.lock"
    flags = os.O_RDWR | os.O_CREAT | (os.O_EXCL if fcntl is None else os.O_NOFOLLOW)
    try:
        lock = os.open(path, flags, 0o666)
    except FileExistsError:
        raise _taken(path, path.read_text(), f", or delete {str(path)!r} if that process is gone") from None
    try:
        if fcntl is not None:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # one or the other, by the system
                raise _taken(path, os.read(lock, 99).decode()) from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        yield
    finally:
        os.close(lock)
        if fcntl is None:
            path.unlink()


def _taken(path: Path, pid: str, more: str = "") -> FileExistsError:
    return FileExistsError(f"another trial runs in {str(path.parent)!r} (pid {pid}): wait for it, or give another --out{more}")
