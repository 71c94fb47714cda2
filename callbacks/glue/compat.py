"""The Lightning we run under: `pytorch_lightning` and `lightning.pytorch` are two packages with classes of their own."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import torch

from groupcam_aug.printable import printable

__all__ = ["Callback", "announce", "keeping_random_numbers", "logged_step", "misconfigured", "warn"]


def _is_here(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is missing, or a mere folder of that name
        return False


_NAMES = [name for name in ("pytorch_lightning", "lightning.pytorch") if _is_here(name)]
if not _NAMES:
    raise ModuleNotFoundError("groupcam_aug.callbacks needs Lightning: pip install pytorch-lightning (or lightning)")

# A Trainer accepts only callbacks of its own package, so ours inherit from every one that is installed.
Callback: Any = type(
    "Callback",
    tuple(importlib.import_module(name).Callback for name in _NAMES),
    {"__module__": __name__, "__doc__": "The `Callback` of every installed Lightning package."},
)


def misconfigured(trainer: Any, message: str) -> Exception:
    """A `MisconfigurationException` of the trainer's own package, to be raised."""
    return _of(trainer, "utilities.exceptions").MisconfigurationException(message)


def announce(trainer: Any, message: str) -> None:
    """Tell the user once, on rank zero, where Lightning tells its own facts."""
    _of(trainer, "utilities.rank_zero").rank_zero_info(printable(message))


def warn(trainer: Any, message: str) -> None:
    """Warn the user, on rank zero."""
    _of(trainer, "utilities.rank_zero").rank_zero_warn(printable(message))


def keeping_random_numbers(trainer: Any) -> Any:
    """A context manager behind which the random numbers of Python, NumPy and torch go on as if nothing had been drawn in it."""
    return _of(trainer, "utilities.seed").isolate_rng(include_cuda=torch.cuda.is_available())


def logged_step(trainer: Any) -> int:
    """The step at which loggers get the metrics of this moment: batches after which an optimiser was due to step.

    `global_step` counts otherwise under manual optimisation: twice with two optimisers, never with one that Lightning does not
    see stepping (SAM's `first_step`, `second_step`).
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _of(trainer: Any, module: str) -> Any:
    """`module` of the Lightning package that the trainer (or a parent of its class) comes from."""
    for base in type(trainer).__mro__:
        for name in _NAMES:
            if base.__module__ == name or base.__module__.startswith(f"{name}."):
                return importlib.import_module(f"{name}.{module}")
    return importlib.import_module(f"{_NAMES[0]}.{module}")
