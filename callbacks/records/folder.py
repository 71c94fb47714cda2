"""Where the callbacks leave their records: one folder per run, written by rank zero.

The callbacks do not know each other. Each writes its own; `SaliencyReport` and `groupcam-aug report` read only the folder.
"""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from groupcam_aug.files import add_line

__all__ = ["RUNS", "now", "open_folder", "record_folder", "run_id"]

RUNS = "runs"  # runs.jsonl
_IDS: WeakKeyDictionary[Any, dict[Path, str]] = WeakKeyDictionary()  # by trainer


def record_folder(trainer: Any) -> Path | None:
    """Where this run's records go: `<log directory>/groupcam`, not created before something is written there.

    The log directory is the first logger's own (TensorBoard, CSV: `lightning_logs/version_3`); for other loggers it is put
    together as `ModelCheckpoint` does, `save_dir/name/version`, so that two runs never share one; without a logger it is
    `default_root_dir`. `trainer.log_dir` itself is not asked: it broadcasts, and only rank zero records.

    Returns:
        The folder; None where nothing is to be recorded: on other ranks, in `fast_dev_run` and in `barebones`.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run or getattr(trainer, "barebones", False):
        return None
    logger = trainer.loggers[0] if trainer.loggers else None
    folder = getattr(logger, "log_dir", None)
    if folder is None and logger is not None and logger.save_dir is not None:
        version = logger.version
        parts = (logger.name, version if version is None or isinstance(version, str) else f"version_{version}")
        folder = os.path.join(logger.save_dir, *(str(part) for part in parts if part))  # noqa: PTH118 - a Path breaks "s3://"
    folder = os.fspath(folder or trainer.default_root_dir)
    # Logs may go to a bucket; Lightning keeps the root directory for such cases, or the working directory.
    if "://" in folder:
        folder = os.fspath(trainer.default_root_dir)
        folder = os.getcwd() if "://" in folder else folder  # noqa: PTH109
    return Path(folder) / "groupcam"


def open_folder(trainer: Any) -> Path | None:
    """The folder of this run's records, for those who only add to it; None where nothing is recorded or asked for.

    A run without logger and checkpoints is to leave nothing on disk, unless something has opened the folder already (a
    `SaliencyReport` does).
    """
    folder = record_folder(trainer)
    if folder is None or not (trainer.loggers or trainer.checkpoint_callback or folder.is_dir()):
        return None
    return folder


def run_id(trainer: Any, folder: Path) -> str:
    """What tells the records of this run from others in the same folder: each of its lines and files says it as "run".

    With the first record of a run a line is added to `runs.jsonl`: its id, its first epoch, and when. So a run that is resumed
    goes on with the records of those before it, and one that starts anew replaces them, whatever clocks say.

    Raises:
        OSError: the line cannot be written.
    """
    ids = _IDS.setdefault(trainer, {})
    if folder not in ids:
        made = secrets.token_hex(6)  # of the system's randomness: the run's is left alone
        add_line(folder, RUNS, {"run": made, "epoch": trainer.current_epoch, "began": now()})
        ids[folder] = made
    return ids[folder]


def now() -> str:
    """The time, with its zone."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
