"""Which images of each class are held out, and which are drawn: by their names and a seed, the same on every machine."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

__all__ = ["draw_per_class", "hash64", "stratified_split"]


def hash64(text: str) -> int:
    """A number in [0, 2**64) that follows from the text, the same in every process; accents may be composed or not."""
    plain = unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")  # macOS and Linux write them differently
    return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big")


def stratified_split(labels: Sequence[int], fraction: float, seed: int, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices to keep and to hold out: of each class about ``fraction``, but at least one on either side; both sorted.

    Each sample is held out, or not, by its name and ``seed`` alone, whatever others there are: one more or one less moves no
    other. Only of a class of which none, or all, would be held out is the nearest to the limit moved to the other side.

    Args:
        labels: class of each sample.
        fraction: in (0, 1).
        seed: another gives another split.
        names: of the samples, in the order of ``labels``.

    Raises:
        ValueError: a class has a single sample, which cannot be on both sides.
    """
    kept, held_out = [], []
    for label, members in sorted(_by_class(labels).items()):
        if len(members) < 2:
            raise ValueError(
                f"class number {label} has one image, so none can be held out; add images, or make train/ and val/ yourself"
            )
        order = sorted((hash64(f"{seed} held out {names[i]}"), i) for i in members)
        count = sum(number < fraction * 2**64 for number, _ in order)
        count = min(max(1, count), len(members) - 1)
        held_out += [i for _, i in order[:count]]
        kept += [i for _, i in order[count:]]
    return sorted(kept), sorted(held_out)


def draw_per_class(labels: Sequence[int], count: int, seed: int, names: Sequence[str]) -> list[int]:
    """Indices of ``count`` samples of each class, chosen by name and ``seed``; sorted. One sample more moves at most one other.

    Raises:
        ValueError: a class has fewer.
    """
    drawn = []
    for label, members in sorted(_by_class(labels).items()):
        if len(members) < count:
            raise ValueError(
                f"class number {label} has {len(members)} training images, fewer than per_class={count}: take at most "
                f"{len(members)}, or add images"
            )
        drawn += sorted(members, key=lambda i: (hash64(f"{seed} drawn {names[i]}"), i))[:count]
    return sorted(drawn)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    return of_class
