"""Labelled concepts on drawn objects: for every pixel its colour, and whether it belongs to a shape or a texture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from groupcam_aug.recipes.drawing import CLASSES, FAMILIES
from groupcam_aug.recipes.shapes import Shapes

__all__ = ["COLOURS", "CONCEPTS", "LabelledImages", "colours_of", "draw_concepts"]

HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")  # a sixth of the circle each, 0 degrees in the middle of red
COLOURS = (*HUES, "grey")
CONCEPTS = {
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(CLASSES, "shape"),
    **dict.fromkeys(FAMILIES, "texture"),
}  # name -> what it is of, in the order of the masks
_INDEPENDENT = 1 / len(FAMILIES)  # backgrounds that say nothing about objects, or a unit for one would be named after the other
GREY = 0.2  # saturation below which a pixel has no hue


class LabelledImages(NamedTuple):
    """Images (N, 3, size, size) float32 in [0, 1], and masks (N, C, size, size) bool of `CONCEPTS`, in their order."""

    images: Tensor
    masks: Tensor


def draw_concepts(count: int, size: int, seed: int = 0, *, held_out: bool = False) -> LabelledImages:
    """Drawn objects with the pixels of each concept: those of the object, of its background, and of each colour anywhere.

    Args:
        count: images.
        size: pixels a side, at least 32.
        seed: of the drawings. Default: 0.
        held_out: others of the same seed. Default: False.
    """
    shapes = Shapes("val" if held_out else "train", count, size=size, rho=_INDEPENDENT, seed=seed)
    pixels, labels, objects = shapes.drawn()
    families = torch.tensor([FAMILIES.index(shapes.family(i)) for i in range(count)])
    images = pixels.float() / 255
    shape = torch.nn.functional.one_hot(labels, len(CLASSES)).bool()[..., None, None] & objects[:, None]
    texture = torch.nn.functional.one_hot(families, len(FAMILIES)).bool()[..., None, None] & ~objects[:, None]
    return LabelledImages(images, torch.cat([colours_of(images), shape, texture], dim=1))


def colours_of(images: Tensor) -> Tensor:
    """Which of `COLOURS` each pixel has, (N, 7, H, W) bool, one each: by hue, or grey where saturation is below a fifth.

    Args:
        images: (N, 3, H, W) in [0, 1].
    """
    high, low = images.amax(dim=1), images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    spread = (high - low).clamp(min=1e-6)
    hue = torch.where(
        high == red,
        ((green - blue) / spread) % 6,
        torch.where(high == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    which = (hue + 0.5).floor().long() % len(HUES)
    which = torch.where((high - low) < GREY * high.clamp(min=1e-6), len(HUES), which)
    return torch.nn.functional.one_hot(which, len(COLOURS)).movedim(-1, 1).bool()
