"""Callbacks that a module brings by its own ``configure_callbacks``: a trial leaves out the same as of a config."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from groupcam_aug.recipes.trial.arms import is_left_out

__all__ = ["ModuleCallbacks"]

COMPARED = ("GroupCAMAugmentation", "BatchTransform")  # what arms differ in


class ModuleCallbacks(pl.Callback):
    """Leaves out of what a module's ``configure_callbacks`` adds what a trial leaves out of a config, and says so.

    Args:
        given: the Trainer's own callbacks.
    """

    def __init__(self, given: Sequence[pl.Callback] = ()) -> None:
        self.given = given

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        """The module's are there by now, before any of them has begun.

        Raises:
            ValueError: they are what arms differ in.
        """
        of_module = [callback for callback in trainer.callbacks if callback not in self.given]
        if fixed := [name for name in _kinds(of_module) if name in COMPARED]:
            raise ValueError(
                f"configure_callbacks of {type(pl_module).__name__} adds {', '.join(fixed)} to every arm, which are to differ in "
                "it: take it out there, and put it into the config"
            )
        left_out = [callback for callback in of_module if is_left_out(type(callback))]
        if left_out:
            trainer.callbacks[:] = [callback for callback in trainer.callbacks if callback not in left_out]
            names = ", ".join(_kinds(left_out))
            warnings.warn(f"left out of every arm, as of configs: {names} of configure_callbacks", stacklevel=2)


def _kinds(callbacks: Sequence[pl.Callback]) -> list[str]:
    return list(dict.fromkeys(type(callback).__name__ for callback in callbacks))
