"""The shapes data's pencil: six objects with exact masks, six families of texture, drawn in batches and supersampled."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CLASSES", "FAMILIES", "NUMBERS", "SUPERSAMPLE", "draw_shapes"]

CLASSES = ("triangle", "square", "cross", "ring", "star", "crescent")
FAMILIES = ("stripes", "checks", "dots", "zigzag", "blobs", "grain")  # FAMILIES[i] goes with CLASSES[i]
NUMBERS = 96  # random numbers that a sample is drawn from
SUPERSAMPLE = 3  # samples a side within a pixel

# Tuned once on training without augmentation, then frozen: easier objects and no network needs the background; fainter textures
# and none uses it. The demo's arm (a), seeds 0 to 2: 97.8 % with kept backgrounds, 75.6 % with swapped ones.
RADIUS = (0.3, 0.42)  # outer radius of an object, smallest and largest, as a share of the image
CONTRAST = 0.385  # between the two background colours, as a share of that between two random colours

_WAVES = 12  # plane waves in a random texture


def draw_shapes(
    numbers: Tensor, labels: Tensor, families: Tensor, size: int, *, with_object: bool = True
) -> tuple[Tensor, Tensor]:
    """Draw a batch of samples.

    Args:
        numbers: (N, 96) random numbers in [0, 1) that decide all but class and family: rotation, place, size, colours, texture.
        labels: (N,) int64, index into `CLASSES`.
        families: (N,) int64, index into `FAMILIES`.
        size: height and width in pixels.
        with_object: False leaves the object out. Default: True.

    Returns:
        Images (N, 3, size, size) uint8 and masks (N, size, size) bool, true where the object covers at least half of the pixel.
    """
    fine = size * SUPERSAMPLE
    axis = (torch.arange(fine) + 0.5) / fine  # pixel centres, 0 to 1 over the image
    column = iter(numbers.unsqueeze(-1).unsqueeze(-1).unbind(1))

    outer = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * next(column)
    x = axis.view(1, 1, -1) - (outer + (1 - 2 * outer) * next(column))
    y = axis.view(1, -1, 1) - (outer + (1 - 2 * outer) * next(column))
    x, y = _rotate(x / outer, y / outer, 2 * math.pi * next(column))
    coverage = _per_kind(labels, _OBJECTS, x, y).float() if with_object else torch.zeros(len(labels), fine, fine)

    x, y = _rotate(axis.view(1, 1, -1) - 0.5, axis.view(1, -1, 1) - 0.5, 2 * math.pi * next(column))
    frequency = 4 + 2.5 * next(column)  # cycles per image
    texture = _per_kind(
        families, _TEXTURES, frequency * x + next(column), frequency * y + next(column), numbers[:, -3 * _WAVES :]
    )

    ground, figure = _colours(torch.stack([next(column) for _ in range(18)], dim=1).view(-1, 6, 3))
    first, second = ground.unbind(1)
    background = first[..., None, None] * (1 - texture[:, None]) + second[..., None, None] * texture[:, None]
    image = torch.lerp(background, figure[..., None, None], coverage[:, None])
    coverage = F.avg_pool2d(coverage[:, None], SUPERSAMPLE)[:, 0]
    image = F.avg_pool2d(image, SUPERSAMPLE)
    return (image * 255).round().clamp(0, 255).to(torch.uint8), coverage >= 0.5


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _per_kind(kinds: Tensor, table: tuple[Callable[..., Tensor], ...], *planes: Tensor) -> Tensor:
    """Fill each sample's plane with the function its kind has in the table."""
    out = torch.empty(torch.broadcast_shapes(*(plane.shape for plane in planes[:2])))
    for kind, function in enumerate(table):
        chosen = (kinds == kind).nonzero()[:, 0]
        if len(chosen):
            out[chosen] = function(*(plane[chosen] for plane in planes)).to(out.dtype)
    return out


def _colours(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Two background colours (N, 2, 3) and, of the other candidates, the object colour (N, 3) that differs most from both."""
    ground = torch.stack([candidates[:, 0], torch.lerp(candidates[:, 0], candidates[:, 1], CONTRAST)], dim=1)
    rest = candidates[:, 2:]
    distance = torch.cdist(rest, ground).amin(dim=2)
    return ground, rest[torch.arange(len(rest)), distance.argmax(dim=1)]


# Objects: true inside, for coordinates in units of the outer radius.
def _polar(x: Tensor, y: Tensor, corners: int) -> tuple[Tensor, Tensor]:
    """Radius, and the angle from the nearest corner direction, in [0, pi / corners]."""
    sector = 2 * math.pi / corners
    return torch.hypot(x, y), (torch.remainder(torch.atan2(y, x) + sector / 2, sector) - sector / 2).abs()


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    radius, angle = _polar(x, y, 3)
    return radius * (math.pi / 3 - angle).cos() <= 0.5


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) <= math.sqrt(0.5)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return (torch.minimum(x, y) <= 0.26) & (torch.maximum(x, y) <= 0.95)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    return (radius <= 0.95) & (radius >= 0.55)


def _star(x: Tensor, y: Tensor) -> Tensor:
    radius, angle = _polar(x, y, 5)
    inner, half = 0.42, math.pi / 5  # the edge runs from the tip (1, 0) to the notch at angle half
    u, v = radius * angle.cos(), radius * angle.sin()
    return (1 - u) * inner * math.sin(half) >= v * (1 - inner * math.cos(half))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) <= 0.95) & (torch.hypot(x - 0.45, y) >= 0.75)


_OBJECTS = (_triangle, _square, _cross, _ring, _star, _crescent)


# Textures: values in [0, 1] between the two background colours, for coordinates in cycles.
def _edge(wave: Tensor) -> Tensor:
    return (0.5 + 3 * wave).clamp(0, 1)


def _stripes(x: Tensor, y: Tensor, numbers: Tensor) -> Tensor:
    return _edge((2 * math.pi * x).sin())


def _checks(x: Tensor, y: Tensor, numbers: Tensor) -> Tensor:
    return _edge((math.pi * x).sin() * (math.pi * y).sin() * 2)


def _dots(x: Tensor, y: Tensor, numbers: Tensor) -> Tensor:
    return _edge((2 * math.pi * x).cos() + (2 * math.pi * y).cos() - 0.6)


def _zigzag(x: Tensor, y: Tensor, numbers: Tensor) -> Tensor:
    teeth = (torch.remainder(y / 1.5, 1) - 0.5).abs() * 2
    return _edge((2 * math.pi * (x + teeth)).sin())


def _blobs(x: Tensor, y: Tensor, numbers: Tensor) -> Tensor:
    return _edge(_random_waves(x, y, numbers, spread=math.pi, frequency=0.55))


def _grain(x: Tensor, y: Tensor, numbers: Tensor) -> Tensor:
    return (0.5 + 0.45 * _random_waves(x, y, numbers, spread=0.35, frequency=1.4)).clamp(0, 1)


def _random_waves(x: Tensor, y: Tensor, numbers: Tensor, spread: float, frequency: float) -> Tensor:
    """Plane waves of random direction (within ``spread`` radians of the x axis), frequency and phase; sum of unit variance."""
    total = torch.zeros_like(x)
    for wave in numbers.view(-1, _WAVES, 3).unbind(1):
        angle, speed, phase = wave.unbind(1)
        angle = (2 * angle - 1) * spread
        speed = 2 * math.pi * frequency * (0.6 + 0.8 * speed)
        u, v = (speed * angle.cos())[:, None, None], (speed * angle.sin())[:, None, None]
        total += (u * x + v * y + 2 * math.pi * phase[:, None, None]).sin()
    return total * math.sqrt(2 / _WAVES)


_TEXTURES = (_stripes, _checks, _dots, _zigzag, _blobs, _grain)
