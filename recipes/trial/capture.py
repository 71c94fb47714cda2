"""What a Trainer says, and how it is stopped, as a trial of many of them needs it."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.warnings import PossibleUserWarning

from groupcam_aug.files import put_file

__all__ = ["captured", "interruptible"]

_OF_LIBRARIES = (PossibleUserWarning, DeprecationWarning, FutureWarning)  # to those who write them, or about speed


@contextlib.contextmanager
def captured(folder: Path) -> Iterator[list[str]]:
    """Warnings are kept, once each; what is printed goes to the log of the run; Lightning's own notes are not for a trial."""
    heard: list[str] = []
    names = [f"{package}.utilities.rank_zero" for package in ("pytorch_lightning", "lightning.pytorch")]
    loggers = [logging.getLogger(name) for name in (*names, "lightning_fabric.utilities.seed", "lightning.fabric.utilities.seed")]
    levels = [logger.level for logger in loggers]
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("default")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield heard
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            texts = [str(one.message) for one in caught if not issubclass(one.category, _OF_LIBRARIES)]
            heard[:0] = dict.fromkeys(text for text in texts if "GPU available but not used" not in text)
            log = "\n".join([printed.getvalue().rstrip(), *heard]).strip()
            if log and folder.is_dir():
                put_file(folder, "log.txt", log + "\n")


def interruptible(trainer: pl.Trainer, work: Callable[[], Any]) -> None:
    """Lightning answers Ctrl-C with an exit, and ignores further ones: here it stays what it is."""
    handler = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    try:
        work()
    except SystemExit as stop:
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    finally:
        if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
