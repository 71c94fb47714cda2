"""What probing takes of the training time: predicted, measured, and warned about where it is much."""

from __future__ import annotations

import math
import time

__all__ = ["ProbingCost", "predicted_share"]

NOTICEABLE = 1.0  # seconds a probing must take before its share of an epoch is worth a warning


def predicted_share(probes: int, images_per_epoch: float, every_n_epochs: int, groups: int | None) -> float:
    """Share that probing adds to an epoch, in forward passes: a training step counts 3 per image.

    Per probe it takes 1 (Grad-CAM, whose gradient goes no further back than the layer; `groups` None) or `groups` + 2
    (Group-CAM on the input; an upper limit elsewhere), twice because of the mirror image, and one for the predictions.
    """
    units = 2 * (1 if groups is None else groups + 2) + 1
    return probes * units / (3 * images_per_epoch * every_n_epochs)


class ProbingCost:
    """The measured share of the time, and one warning.

    Args:
        every_n_epochs: epochs that a probing stands for.
        limit: share above which to warn, once three probings have taken more. None: never.
    """

    def __init__(self, every_n_epochs: int, limit: float | None) -> None:
        self.every_n_epochs, self.limit = every_n_epochs, limit
        self.share: float | None = None  # of the last probing
        self._last: list[tuple[float, float]] = []  # (share, seconds) of the last three
        self._epoch_began: float | None = None
        self._warned = False

    def start_epoch(self) -> None:
        """Start the clock of an epoch."""
        self._epoch_began = time.perf_counter()

    def stop(self) -> None:
        """Stop it: a fit is over, and the next one may be resumed within an epoch, of which only a part is measured."""
        self._epoch_began = None

    def measure(self, began: float, seconds: float, probes: int) -> str | None:
        """Take in a probing of so many probes, which began after the epoch's training; the warning, if one is due."""
        if self._epoch_began is None:
            return None
        self.share = seconds / max(began - self._epoch_began, 1e-9) / self.every_n_epochs
        self._last = [*self._last, (self.share, seconds)][-3:]
        # The least of three probings: the first pays for what is set up on first use, and any may meet a busy machine.
        share, least = (min(column) for column in zip(*self._last, strict=True))
        if self._warned or self.limit is None or len(self._last) < 3 or share <= self.limit or least < NOTICEABLE:
            return None
        self._warned = True
        return (
            f"watching {probes} probes takes {least:.1f} s, {share:.1%} of the epochs' time; SaliencyMonitor(every_n_epochs="
            f"{math.ceil(share * self.every_n_epochs / self.limit)}) stays below {self.limit:.0%}, fewer probes (num_images=) "
            "help as well, and max_overhead=None silences this"
        )
