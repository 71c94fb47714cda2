"""When maps have settled: a low change that lasts, while the network is still being trained and has maps at all."""

from __future__ import annotations

from typing import Any, Literal

from groupcam_aug.arguments import check_number, check_whole

__all__ = ["Convergence"]


class Convergence:
    """Counts consecutive probings with little change, and tells settled maps from a learning rate that was cut.

    A probing is quiet if change <= `threshold` and alive >= `min_alive`. Maps have settled with the first of `patience`
    consecutive quiet probings at each of which the learning rate is above 0 and above `min_lr_share` of the highest seen. As
    many quiet probings without that say nothing: a network that is not moved does not change its maps.

    Args:
        threshold: of the change, 0 to 1. Default: 0.05.
        patience: k, at least 1. Default: 3.
        min_lr_share: of the highest learning rate seen, 0 to 1. Default: 0.1, at which the usual division by 10 is a cut.
        min_alive: share of the probes that must have a map, 0 to 1. Default: 0.5.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, threshold: float = 0.05, patience: int = 3, min_lr_share: float = 0.1, min_alive: float = 0.5) -> None:
        for name, value in (("threshold", threshold), ("min_lr_share", min_lr_share), ("min_alive", min_alive)):
            check_number(name, value, 0, 1)
        check_whole("patience", patience, 1)
        self.threshold, self.patience, self.min_lr_share, self.min_alive = threshold, patience, min_lr_share, min_alive
        self.converged_epoch: int | None = None  # the first epoch of the run of probings by which maps had settled
        self.fell_with_lr: int | None = None  # the epoch in which change had been low for as long, but the rate was cut
        self.quiet = 0  # consecutive quiet probings
        self.settled = 0  # of these, the last ones at a learning rate that counts
        self.last_epoch = -1
        self._since = -1

    def update(
        self, epoch: int, change: float, alive: float, lr: float | None, max_lr: float | None
    ) -> Literal["converged", "lr"] | None:
        """Take in one probing; of an epoch that was taken in already, nothing.

        Args:
            epoch: of the probing.
            change: as logged, 0 to 1.
            alive: share of the probes with a map.
            lr: learning rate, or None if unknown (no optimiser): then it says nothing.
            max_lr: highest so far.

        Returns:
            "converged" or "lr" at the probing that decides it, once each; else None.
        """
        if epoch <= self.last_epoch:
            return None
        self.last_epoch = epoch
        if not (change <= self.threshold and alive >= self.min_alive):
            self.quiet = self.settled = 0
            return None
        self.quiet += 1
        if lr is None or max_lr is None or lr > self.min_lr_share * max_lr * (1 + _ROUNDING):
            self._since = self._since if self.settled else epoch
            self.settled += 1
        else:
            self.settled = 0
        if self.settled >= self.patience and self.converged_epoch is None:
            self.converged_epoch = self._since
            return "converged"
        if self.quiet >= self.patience > self.settled and self.converged_epoch is None and self.fell_with_lr is None:
            self.fell_with_lr = epoch
            return "lr"
        return None

    def renewed(self) -> Convergence:
        """The same rule at its start."""
        return Convergence(self.threshold, self.patience, self.min_lr_share, self.min_alive)

    def state_dict(self) -> dict[str, Any]:
        """Counters and epochs, builtins only."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name in _STATE:
            setattr(self, name, state[name])


_ROUNDING = 1e-6  # a schedule that divides by 10 rarely hits a tenth to the last bit
_STATE = ("converged_epoch", "fell_with_lr", "quiet", "settled", "last_epoch", "_since")
