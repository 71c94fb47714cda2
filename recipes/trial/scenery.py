"""Drawn scenes: two colours, waves between them, and a photograph set in with soft edges."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["draw_scenes"]

# Tuned once on training without augmentation, then frozen.
CONTRAST = 0.25  # between the two colours of a texture, as a share of that between two random colours
HUES = 1.2  # range of a family's hues, as a share of the distance to the next family's

_WAVES = 4
_NUMBERS = 8 + 3 * _WAVES


def draw_scenes(
    photographs: Tensor, families: Tensor, kinds: int, pixels: int, shortcut: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Photographs, cut out softly, in scenes.

    Args:
        photographs: (N, 3, 32, 32) float, 0 to 255.
        families: (N,) int64, of the scenes.
        kinds: number of families.
        pixels: a side of the scene.
        shortcut: what a family decides, "texture" or "colour".
        generator: of everything else. Size and place of the objects do not depend on the family.

    Returns:
        Images (N, 3, pixels, pixels) uint8 and masks, bool, true where the photograph covers more than half.
    """
    count = len(photographs)
    sides = torch.randint(round(pixels * 7 / 16), round(pixels * 10 / 16) + 1, (count,), generator=generator)
    place = torch.rand(count, 2, generator=generator)
    numbers = torch.rand(count, _NUMBERS, generator=generator)
    images, masks = torch.empty(count, 3, pixels, pixels, dtype=torch.uint8), torch.empty(count, pixels, pixels, dtype=torch.bool)
    for side in sides.unique().tolist():
        for index in (sides == side).nonzero()[:, 0].split(256):
            scene = _scenes(families[index], kinds, pixels, shortcut, numbers[index])
            objects = F.interpolate(photographs[index], side, mode="bilinear", antialias=True, align_corners=False)
            alpha = _super_ellipse(side)
            corner = (place[index] * (pixels - side + 1)).long().clamp(max=pixels - side)
            rows, columns = (corner[:, axis, None] + torch.arange(side) for axis in (0, 1))
            at = torch.arange(len(index))[:, None, None], rows[:, :, None], columns[:, None, :]
            covered = torch.zeros(len(index), pixels, pixels)
            covered[at] = alpha.expand(len(index), side, side)
            channels_last = scene.permute(0, 2, 3, 1)
            channels_last[at] = torch.lerp(channels_last[at], objects.permute(0, 2, 3, 1), alpha[None, :, :, None])
            images[index] = channels_last.permute(0, 3, 1, 2).round().clamp(0, 255).to(torch.uint8)
            masks[index] = covered > 0.5
    return images, masks


def _super_ellipse(side: int) -> Tensor:
    """Opacity (side, side): 1 inside |x|^4 + |y|^4 = 1, falling to 0 over the outer sixth."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    radius = (axis[:, None] ** 4 + axis**4) ** 0.25
    return ((1 - radius) * 6).clamp(0, 1)


def _scenes(families: Tensor, kinds: int, pixels: int, shortcut: str, numbers: Tensor) -> Tensor:
    """Scenes (N, 3, pixels, pixels), 0 to 255: two colours, waves between them."""
    axis = torch.arange(pixels) / pixels
    x, y = axis.view(1, 1, -1), axis.view(1, -1, 1)
    looks, waves = numbers[:, :8], numbers[:, 8:].view(-1, _WAVES, 3)
    half = math.ceil(kinds / 2)
    if shortcut == "texture":
        angles = math.pi * (families % half) / half  # directions, at two frequencies
        frequencies = torch.where(families < half, 0.09, 0.19) * pixels
        first, second = looks[:, :6].view(-1, 2, 3).unbind(1)
        colours = torch.stack([first, torch.lerp(first, second, CONTRAST)], dim=1)
    else:
        angles = math.pi * looks[:, 6]
        frequencies = (0.05 + 0.15 * looks[:, 7]) * pixels
        hues = (families[:, None] + HUES * (looks[:, :2] - 0.5)) / kinds
        colours = _from_hue(hues, 0.1 + 0.3 * looks[:, 2:4], 0.4 + 0.5 * looks[:, 4:6])
    total = torch.zeros(len(families), pixels, pixels)
    for wave in waves.unbind(1):
        angle = (angles + 0.25 * (wave[:, 0] - 0.5))[:, None, None]
        speed = (2 * math.pi * frequencies * (0.9 + 0.2 * wave[:, 1]))[:, None, None]
        total += (speed * (x * angle.cos() + y * angle.sin()) + 2 * math.pi * wave[:, 2, None, None]).sin()
    weight = (0.5 + total / math.sqrt(2 * _WAVES)).clamp(0, 1)[:, None]
    return 255 * torch.lerp(colours[:, 0, :, None, None], colours[:, 1, :, None, None], weight)


def _from_hue(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Colours (..., 3) in [0, 1]; hue in turns."""
    offsets = torch.tensor([5.0, 3.0, 1.0])
    k = torch.remainder(offsets + 6 * hue[..., None], 6)
    return value[..., None] * (1 - saturation[..., None] * torch.minimum(torch.minimum(k, 4 - k), torch.ones(())).clamp(min=0))
