"""Ending a training whose maps have settled."""

from __future__ import annotations

import importlib
from typing import Any

from groupcam_aug.arguments import changed_options, check_name
from groupcam_aug.callbacks.glue.compat import Callback, announce, misconfigured
from groupcam_aug.callbacks.glue.network import reduce_together
from groupcam_aug.callbacks.monitor import SaliencyMonitor
from groupcam_aug.callbacks.monitoring.convergence import Convergence

__all__ = ["SaliencyEarlyStopping"]


class _Last:
    """Ends the chain of initialisers of one package's EarlyStopping before that of the other, which takes arguments."""

    def __init__(self) -> None:
        pass


def _early_stopping() -> Any:
    """The EarlyStopping of every installed Lightning package: each Trainer runs its own kind after all other callbacks."""
    homes = [base.__module__.partition(".callbacks")[0] for base in Callback.__bases__]
    first, *others = [importlib.import_module(f"{home}.callbacks").EarlyStopping for home in homes]
    # Under a name of its own: command lines name Lightning's by the class alone.
    return type("_EarlyStopping", (first, _Last, *others), {"__module__": __name__, "__doc__": first.__doc__})


EarlyStopping: Any = _early_stopping()


class SaliencyEarlyStopping(EarlyStopping):
    """Stops a training when the maps that a `SaliencyMonitor` watches have settled.

    That is, at the last of `patience` probings in a row at each of which the change is at most `threshold`, at least `min_alive`
    of the probes have a map, and the learning rate is above `min_lr_share` of the highest seen. A single dip
    does not stop, nor does a change that fell only because the learning rate was cut. `min_epochs` of the Trainer holds.

    Stable maps are necessary for a finished training, not sufficient: accuracy may still move, and a network that settled on a
    shortcut has stable maps too. Without this callback the monitor only reports `converged_epoch`.

    Where the callback stands in the list does not matter. In `fast_dev_run` and `barebones`, where nothing is mapped, it never
    stops.

    Args:
        threshold: of the change. None: the monitor's.
        patience: probings in a row. None: the monitor's.
        min_lr_share: None: the monitor's.
        min_alive: None: the monitor's.
        prefix: of the monitor, if there are several.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: no SaliencyMonitor in the Trainer, or several to choose from.

    Example::

        trainer = Trainer(callbacks=[SaliencyMonitor(network="model"), SaliencyEarlyStopping()])
    """

    def __init__(
        self,
        *,
        threshold: float | None = None,
        patience: int | None = None,
        min_lr_share: float | None = None,
        min_alive: float | None = None,
        prefix: str | None = None,
    ) -> None:
        rule = {"threshold": threshold, "patience": patience, "min_lr_share": min_lr_share, "min_alive": min_alive}
        self._rule: dict[str, Any] = {name: value for name, value in rule.items() if value is not None}
        check_name("prefix", prefix, "the prefix= of a SaliencyMonitor")
        self.prefix = prefix
        self._convergence = Convergence(**self._rule)
        self._of: dict[str, Any] = {}  # whose maps were counted, see SaliencyMonitor.fingerprint
        super().__init__("saliency/change", patience=self._convergence.patience, mode="min")

    def __repr__(self) -> str:
        """The arguments that were given."""
        return f"{type(self).__name__}({', '.join(changed_options(type(self).__init__, self._rule | {'prefix': self.prefix}))})"

    @property
    def state_key(self) -> str:
        """Not that of an EarlyStopping which monitors the same key."""
        return self._generate_state_key(prefix=self.prefix)

    @property
    def converged_epoch(self) -> int | None:
        """The epoch in which the maps had settled, by the measures of this callback; None so far."""
        return self._convergence.converged_epoch

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the monitor."""
        if stage != "fit":
            return
        candidates = [callback for callback in trainer.callbacks if isinstance(callback, SaliencyMonitor)]
        monitors = [monitor for monitor in candidates if self.prefix in (None, monitor.prefix)]
        if len(monitors) != 1:
            prefixes = [monitor.prefix for monitor in candidates]
            there = f"those there are have the prefixes {prefixes}" if candidates else "there is none"
            which = "a SaliencyMonitor" if self.prefix is None else f"a SaliencyMonitor(prefix={self.prefix!r})"
            remedy = (
                "say which with prefix="
                if len(monitors) > 1
                else "Trainer(callbacks=[SaliencyMonitor(), SaliencyEarlyStopping()])"
            )
            raise misconfigured(trainer, f"SaliencyEarlyStopping needs {which} in the same Trainer, and {there}: {remedy}")
        self._watched = monitors[0]
        if trainer.current_epoch == 0:  # not when the same Trainer goes on
            self._convergence, self._of = self._new_convergence(), {}
            self.stopped_epoch = self.wait_count = 0
        self.monitor, self.patience = f"{self._watched.prefix}change", self._convergence.patience

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take in the probings since the last epoch, and decide. Lightning calls this after every other callback."""
        if trainer.fast_dev_run:
            return
        if self._of and self._of != self._watched.fingerprint:  # resumed with other maps: those counted so far say nothing
            counted, self._convergence = self._convergence.last_epoch, self._convergence.renewed()
            self._convergence.last_epoch = counted
        self._of = self._watched.fingerprint
        for probing in self._watched.history:
            self._convergence.update(*(probing[name] for name in ("epoch", "change", "alive", "lr", "max_lr")))
        self.wait_count = self._convergence.settled
        reached = self._convergence.settled >= self._convergence.patience
        reduce_together(trainer)
        # As Lightning's own: if one rank decides to stop, all do.
        if trainer.strategy.reduce_boolean_decision(reached, all=False):
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
            reasons = getattr(self, "stopping_reason", None)  # newer Lightning: a member of an Enum
            self.stopping_reason = getattr(type(reasons), "STOPPING_THRESHOLD", None)
            rule = self._convergence
            self.stopping_reason_message = (
                f"{self.monitor} stayed at {rule.threshold} or below for {rule.patience} probings since epoch "
                f"{self.converged_epoch}, at a learning rate that had not been cut"
            )
            announce(trainer, f"SaliencyEarlyStopping: {self.stopping_reason_message}")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing: there is news only at the end of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Builtins only."""
        return {"stopped_epoch": self.stopped_epoch, "convergence": self._convergence.state_dict(), "of": dict(self._of)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.stopped_epoch = state_dict["stopped_epoch"]
        self._convergence.load_state_dict(state_dict["convergence"])
        self._of = dict(state_dict.get("of", {}))

    def _new_convergence(self) -> Convergence:
        theirs = {name: getattr(self._watched, name) for name in ("threshold", "patience", "min_lr_share", "min_alive")}
        return Convergence(**{**theirs, **self._rule})
