"""Corruptions of images, made on their device, in three severities: how accurate a network is on pictures worse than in training.

Kinds and strengths follow the benchmark of Hendrycks and Dietterich 2019 (arXiv 1903.12261) in spirit, not to the letter. Blurs
are listed apart: an augmentation that blurs has met them in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["BLURS", "CORRUPTIONS", "SEVERITIES", "corrupt"]

SEVERITIES = 3


def corrupt(name: str, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupted images.

    Args:
        name: a key of `CORRUPTIONS`.
        images: (N, 3, H, W) uint8.
        severity: 1 to 3.
        generator: on the CPU, for the noises.

    Returns:
        (N, 3, H, W) uint8 on the images' device.

    Raises:
        ValueError: another name or severity.
    """
    if name not in CORRUPTIONS or not 1 <= severity <= SEVERITIES:
        raise ValueError(
            f"no corruption {name!r} of severity {severity}: known are {', '.join(CORRUPTIONS)}, from 1 to {SEVERITIES}"
        )
    function, strengths = CORRUPTIONS[name]
    changed = function(images.float() / 255, strengths[severity - 1], generator)
    return (changed * 255).round().clamp(0, 255).to(torch.uint8)


def _gaussian_noise(images: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    return images + spread * torch.randn(images.shape, generator=generator).to(images.device)


def _impulse_noise(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    chance = torch.rand(images.shape, generator=generator).to(images.device)
    return torch.where(chance < share / 2, 0.0, torch.where(chance > 1 - share / 2, 1.0, images))


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    return (images + amount).clamp(0, 1)


def _saturation(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return v2.functional.adjust_saturation(images, factor)


def _pixelate(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    small = F.interpolate(images, scale_factor=factor, mode="area")
    return F.interpolate(small, images.shape[-2:], mode="nearest")


def _gaussian_blur(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return v2.functional.gaussian_blur(images, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma] * 2)


def _defocus_blur(images: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    reach = math.ceil(radius)
    axis = torch.arange(-reach, reach + 1.0)
    disc = (radius + 0.5 - torch.hypot(axis[:, None], axis)).clamp(0, 1)  # the rim pixels in part
    return _filtered(images, disc)


def _motion_blur(images: Tensor, length: float, generator: torch.Generator) -> Tensor:
    return _filtered(images, torch.ones(1, int(length)))


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    weights = (kernel / kernel.sum()).to(images)[None, None].expand(3, 1, *kernel.shape)
    height, width = kernel.shape
    padded = F.pad(images, (width // 2, width // 2, height // 2, height // 2), mode="reflect")
    return F.conv2d(padded, weights, groups=3)


# Strengths are for pictures of about 32 pixels.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, float, float]]] = {
    "gaussian noise": (_gaussian_noise, (0.04, 0.08, 0.12)),
    "contrast": (_contrast, (0.6, 0.4, 0.25)),
    "impulse noise": (_impulse_noise, (0.02, 0.05, 0.1)),
    "pixelate": (_pixelate, (0.75, 0.5, 0.25)),
    "brightness": (_brightness, (0.1, 0.2, 0.3)),
    "saturation": (_saturation, (0.4, 0.2, 0.0)),
    "gaussian blur": (_gaussian_blur, (0.5, 0.75, 1.0)),
    "motion blur": (_motion_blur, (3, 5, 7)),
    "defocus blur": (_defocus_blur, (0.75, 1.25, 1.75)),
}
BLURS = ("gaussian blur", "motion blur", "defocus blur")
