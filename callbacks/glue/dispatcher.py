"""How a training batch is reached on its way to `training_step`.

Lightning has no hook that lets a callback replace a batch. `strategy.batch_to_device` is the last thing that happens to one:
behind it stand the precision conversion and every transfer hook of the user, in front of it `training_step`. So one
`Dispatcher` per strategy takes its place, on the strategy object only, and hands each batch to its owners. The user's module
and data are never touched: no method is patched, no tensor written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from groupcam_aug.callbacks.glue.arguments import ConfiguredCallback
from groupcam_aug.callbacks.glue.compat import misconfigured, warn

__all__ = ["BatchCallback", "Dispatcher", "is_for_training"]


class Dispatcher:
    """Stands in for `strategy.batch_to_device` and passes each batch through its owners, in the order they came.

    All owners share one dispatcher, and each leaves in its own time: the last one out puts the original back. If somebody
    else has wrapped the method since, the dispatcher stays below as a pass-through.
    """

    def __init__(self, strategy: Any) -> None:
        self.original = strategy.batch_to_device
        self.own = "batch_to_device" in vars(strategy)  # whether it was already replaced on the object
        self.owners: list[Callable[[Any], Any]] = []
        self.last: Any = None  # the batch handed out, until the step has checked that it arrived
        self._warned = False

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The batch on its device, as the owners leave it."""
        batch = self.original(batch, *args, **kwargs)
        for owner in list(self.owners):
            batch = owner(batch)
        self.last = batch
        return batch

    def check_arrival(self, trainer: Any, batch: Any, passed: bool, who: str, instead: str) -> None:
        """Whether the batch of a step is the one that was handed out; a warning, once, if somebody exchanged it since.

        Args:
            trainer: of the fit.
            batch: as `on_train_batch_start` gets it.
            passed: whether any batch passed the owner since the last step.
            who: the callback's name.
            instead: what to do where no batch passes.

        Raises:
            MisconfigurationException: the batch never came by.
        """
        if batch is None or batch is self.last:
            return
        if not passed:
            raise misconfigured(
                trainer,
                f"this batch reached training_step without passing {who}: something replaced "
                f"strategy.batch_to_device after setup and does not call the original. {instead}",
            )
        if not self._warned:
            self._warned = True
            warn(trainer, f"another wrapper of strategy.batch_to_device exchanged the batch after {who}")

    @classmethod
    def attach(cls, strategy: Any, owner: Callable[[Any], Any]) -> Dispatcher:
        """Let `owner` (batch -> batch) see every batch of `strategy`, once however often it asks."""
        dispatcher = vars(strategy).get("_groupcam_dispatcher")
        if dispatcher is None or (not dispatcher.owners and vars(strategy).get("batch_to_device") is not dispatcher):
            dispatcher = cls(strategy)  # an old one without owners may have been cut off by whoever put back what he had found
            strategy._groupcam_dispatcher = strategy.batch_to_device = dispatcher
        if owner not in dispatcher.owners:
            dispatcher.owners.append(owner)
        return dispatcher

    @classmethod
    def detach(cls, strategy: Any, owner: Callable[[Any], Any]) -> None:
        """Undo `attach`; harmless if there is nothing to undo."""
        dispatcher = vars(strategy).get("_groupcam_dispatcher")
        if dispatcher is None:
            return
        if owner in dispatcher.owners:
            dispatcher.owners.remove(owner)
        if dispatcher.owners:
            return
        dispatcher.last = None
        if vars(strategy).get("batch_to_device") is dispatcher:
            if dispatcher.own:
                strategy.batch_to_device = dispatcher.original
            else:
                del strategy.batch_to_device
            del strategy._groupcam_dispatcher


class BatchCallback(ConfiguredCallback):
    """A callback that changes training batches: `setup` makes `_fit`, which holds the trainer, and attaches `_on_batch`."""

    _fit: Any = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Step out of the line, and forget the network."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same after an error or Ctrl-C, when Lightning calls no teardown."""
        self._release()

    def _on_batch(self, batch: Any) -> Any:
        raise NotImplementedError

    def _release(self) -> None:
        if self._fit is not None:
            Dispatcher.detach(self._fit.trainer.strategy, self._on_batch)
        self._fit = None


def is_for_training(trainer: Any, batch: Any) -> bool:
    """Whether a batch is on its way to `training_step`, not to validation, a sanity check, test or predict."""
    return batch is not None and trainer.training and not trainer.sanity_checking and torch.is_grad_enabled()
