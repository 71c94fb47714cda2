"""What ``fit`` says at its end: where everything is, and the commands that come next, to be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.predictions import files_of

__all__ = ["next_steps"]

COMMANDS, IMAGES = 3, 4  # how many commands; images to explain


def next_steps(trainer: Any, model: Any, data: Any) -> list[str]:
    """The lines: folder of the run, best checkpoint, report, and the next three commands.

    Args:
        trainer: after `fit`.
        model: that was trained; only a `Classifier` can be explained and evaluated from its checkpoint alone.
        data: its ``val_set`` gives the images to explain, where it has files.

    Returns:
        Nothing where the run kept neither folder nor checkpoint, as with ``fast_dev_run``.
    """
    if trainer.fast_dev_run or trainer.log_dir is None:
        return []
    folder = _near(trainer.log_dir)
    lines = [f"run              {folder}"]
    checkpoint, about = _best(trainer)
    if checkpoint:
        lines.append(f"best checkpoint  {checkpoint}{about}")
    report = next((path for path in (getattr(c, "path", None) for c in trainer.callbacks) if _is_report(path)), None)
    if report is not None:
        lines.append(f"report           {_near(report)}")
    commands = islice(_commands(folder, checkpoint, report, model, data), COMMANDS)
    return [*lines, "next:", *(f"  {shlex.join(['groupcam-aug', *words])}" for words in commands)]


def _commands(folder: Path, checkpoint: str, report: Path | None, model: Any, data: Any) -> Iterator[list[str]]:
    config = folder / "config.yaml"
    if checkpoint and config.is_file() and getattr(data, "untestable", None) is None:
        yield ["test", "--config", str(config), "--ckpt_path", checkpoint]
    files = files_of(getattr(data, "val_set", None)) if checkpoint and type(model) is Classifier else None
    if files:
        yield ["explain", *files[:: -(-len(files) // IMAGES)], "--checkpoint", checkpoint]
    if report is not None:
        yield ["report", str(folder), "--open"]
    if config.is_file():
        yield ["trial", str(config), "--arms", "none", "fast", "fast-other", "--seeds", "3"]


def _best(trainer: Any) -> tuple[str, str]:
    """The best checkpoint of the first callback that watches something, else the newest; and what it scored."""
    for callback in sorted(trainer.checkpoint_callbacks, key=lambda one: getattr(one, "monitor", None) is None):
        for name in ("best_model_path", "last_model_path"):
            path = getattr(callback, name, "")
            if path and Path(path).is_file():
                watched, score = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
                best = name == "best_model_path" and watched is not None and score is not None
                return str(_near(path)), f" ({watched} {score:.4g})" if best else ""
    return "", ""


def _near(path: str | Path) -> Path:
    """A path as one would type it here."""
    return Path(path).relative_to(Path.cwd()) if Path(path).is_relative_to(Path.cwd()) else Path(path)


def _is_report(path: Any) -> bool:
    return isinstance(path, Path) and path.is_file()
