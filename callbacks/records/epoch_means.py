"""Means of what is logged over the steps of an epoch: where epochs are short, a logger gets nothing of single steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["EpochMeans"]


class EpochMeans:
    """Weighted means of the epoch under way. Nothing here waits for the device before `take`."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names -> (2, names): weighted sums, and weights

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """The values of a step.

        Args:
            values: of one device, without dimensions. NaN is nothing known: it does not count.
            weight: of the step, such as its number of images.
        """
        row, names = torch.stack([*values.values()]).float(), tuple(values)
        pair = torch.stack([row.nan_to_num(), (~row.isnan()).float()]) * weight
        self._sums[names] = self._sums[names] + pair if names in self._sums else pair

    def take(self) -> dict[str, float]:
        """The means by name, without what nothing is known of; the next epoch begins. Waits for the device."""
        taken, self._sums = self._sums, {}
        means: dict[str, float] = {}
        for names, pair in taken.items():
            means |= {name: total / weight for name, total, weight in zip(names, *pair.tolist(), strict=True) if weight}
        return means
