"""The probes' maps as pictures: of one moment, and over the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from groupcam_aug.draw import film_strip, overlay, resized_pictures, to_display

__all__ = ["FilmStrip", "column", "is_kept", "thumbnails"]

SIZE = 112  # pixels along the longer side of a probe, in columns
FRAME = 64  # and in film strips
COLUMNS = 16  # moments in a film strip


def thumbnails(images: Tensor, mean: Any = None, std: Any = None) -> Tensor:
    """(S, C, H, W) as pictures (S, 3, h, w) uint8 of `SIZE` pixels along the longer side; see `to_display` for mean and std."""
    return resized_pictures(to_display(images, mean, std), SIZE)


def column(pictures: Tensor, maps: Tensor | None = None) -> Image.Image:
    """Pictures (S, 3, h, w) uint8 under each other, without gaps; with maps (S, u, v) in [0, 1] laid over, on a fixed scale."""
    shown = pictures if maps is None else overlay(pictures, maps.float())
    return to_pil_image(torch.cat(list(shown), dim=1))


class FilmStrip:
    """The maps of a few probes over the run, more sparsely the longer it gets, for a film strip.

    Moments are kept at distances that grow with their number (about 10 %), so a strip has its columns on a logarithmic scale
    however long the run turns out, and a checkpoint holds tens of frames, not one per epoch.
    """

    def __init__(self) -> None:
        self.frames: dict[int, tuple[int, Tensor]] = {}  # number of the probing -> epoch (-1: before training), (S, u, v) float16
        self.count = 0

    def add(self, epoch: int, maps: Tensor) -> None:
        """One more moment: (S, u, v) in [0, 1]."""
        if self.frames and not is_kept(latest := max(self.frames)):
            del self.frames[latest]
        self.frames[self.count] = (epoch, maps.clone())
        self.count += 1

    def draw(self, pictures: Tensor, names: Sequence[str] = ()) -> Image.Image:
        """A row per probe, a column per moment, at most `COLUMNS` of them; names and (S, 3, h, w) uint8 pictures go first."""
        moments = [self.frames[number] for number in _log_spaced(sorted(self.frames), COLUMNS)]
        titles = ["start" if epoch < 0 else f"epoch {epoch}" for epoch, _ in moments]
        small = resized_pictures(pictures, FRAME)  # once, not for every moment
        return film_strip(small, torch.stack([maps.float() for _, maps in moments]), titles, names, size=FRAME)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only."""
        return {"count": self.count, "frames": {number: [epoch, maps] for number, (epoch, maps) in self.frames.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.count = state["count"]
        self.frames = {number: (epoch, maps) for number, (epoch, maps) in state["frames"].items()}


def is_kept(number: int, growth: float = 1.1) -> bool:
    """Whether a moment is one of few: the first ten, then one wherever the way so far has grown by the factor `growth`."""
    return number < 10 or math.floor(math.log(number, growth)) != math.floor(math.log(number - 1, growth))


def _log_spaced(numbers: list[int], count: int) -> list[int]:
    """At most `count` of the sorted numbers, the first and the last among them, at distances that grow."""
    if len(numbers) <= count:
        return numbers
    last = numbers[-1]
    wanted = [last ** (i / (count - 1)) for i in range(count)]
    chosen = {numbers[0], last} | {min(numbers, key=lambda number: abs(number - wish)) for wish in wanted}
    for number in numbers:  # wishes close together meet the same number: fill up with the earliest, where most happens
        if len(chosen) >= count:
            break
        chosen.add(number)
    return [*sorted(chosen)[: count - 1], last] if len(chosen) > count else sorted(chosen)
