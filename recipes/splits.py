"""Which images of each class are held out, and which are drawn: by a seed, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["draw_per_class", "stratified_split"]


def stratified_split(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to keep and to hold out: of each class ``fraction``, rounded, but at least one, chosen by ``seed``; both sorted.

    Raises:
        ValueError: a class has a single sample, which cannot be on both sides.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, held_out = [], []
    for label, members in sorted(_by_class(labels).items()):
        if len(members) < 2:
            raise ValueError(
                f"class number {label} has one image, so none can be held out; add images, or make train/ and val/ yourself"
            )
        count = min(max(1, math.floor(fraction * len(members) + 0.5)), len(members) - 1)
        order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
        held_out += order[:count]
        kept += order[count:]
    return sorted(kept), sorted(held_out)


def draw_per_class(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of ``count`` samples of each class, chosen by ``seed``; sorted.

    Raises:
        ValueError: a class has fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label, members in sorted(_by_class(labels).items()):
        if len(members) < count:
            raise ValueError(
                f"class number {label} has {len(members)} training images, fewer than per_class={count}: take at most "
                f"{len(members)}, or add images"
            )
        drawn += [members[i] for i in torch.randperm(len(members), generator=generator)[:count].tolist()]
    return sorted(drawn)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    return of_class
