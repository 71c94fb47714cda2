"""What happens to an image, and to its object mask, between file and batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "SMALL", "Prepare", "eval_transform", "normalised", "train_transform"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL = 64  # pixels; up to here an image is small: kept whole for validation, padded and cropped for training


def train_transform(name: str, size: int) -> v2.Transform:
    """PIL image -> augmented PIL image of ``size`` x ``size``.

    Args:
        name: "crop-resize" (random part of the image, resized, a flip), "pad-crop" (4 pixels of padding, random crop, a flip),
            or "none" (as for validation).
        size: pixels a side.
    """
    if name == "crop-resize":
        return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    if name == "pad-crop":
        return v2.Compose([eval_transform(size, size), v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()])
    if name == "none":
        return eval_transform(size)
    raise ValueError(f'train_transform={name!r} is none of "crop-resize", "pad-crop", "none"; or give a transform by class_path')


def eval_transform(size: int, resize: int | None = None) -> v2.Transform:
    """PIL image -> PIL image of ``size`` x ``size``: shorter side to ``resize``, then the centre.

    Args:
        size: pixels a side.
        resize: shorter side before the crop. Default: size * 256 / 224, rounded; for small images (size <= 64) ``size``.
    """
    if resize is None:
        resize = size if size <= SMALL else round(size * 256 / 224)
    if resize < size:
        raise ValueError(
            f"resize={resize} is smaller than size={size}: the crop would not fit; give resize >= size, or leave it out"
        )
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])


def normalised(mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """PIL image -> (3, H, W) float32: scaled to [0, 1], less ``mean``, by ``std``.

    Raises:
        ValueError: not a number for each of the three channels.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name}={list(values)!r} has {len(values)} numbers: give 3, for the images are RGB")
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


class Prepare:
    """Two transforms in a row, of an image alone or with its object mask (picklable, for loading processes).

    Args:
        first: PIL image -> image, random or not. For masks it must take (image, mask) as torchvision's v2 transforms do, so that
            both go through the same random choices.
        second: of the image alone, to a tensor.
    """

    def __init__(self, first: Callable, second: Callable) -> None:
        self.first, self.second = first, second

    def __call__(self, image: Any) -> Tensor:
        """PIL image -> (3, H, W) float32.

        Raises:
            ValueError: ``first`` returned no image that ``second`` can take.
        """
        return self.second(_checked(self.first(image))).as_subclass(Tensor)

    def pair(self, image: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        """PIL image and mask (H, W) bool -> (3, H', W') float32 and (H', W') bool; the image is the one of a call.

        Raises:
            TypeError: ``first`` did not return a pair.
        """
        both = self.first(image, tv_tensors.Mask(mask[None]))
        if not isinstance(both, tuple | list) or len(both) != 2:
            raise TypeError(f"train_transform returned {type(both).__name__} for (image, mask), not a pair. {_REMEDY}")
        return self.second(_checked(both[0])).as_subclass(Tensor), both[1].as_subclass(Tensor).reshape(both[1].shape[-2:]).bool()

    def check_takes_masks(self) -> None:
        """Refuse a ``first`` that takes an image alone.

        Raises:
            TypeError: it does.
        """
        call = self.first.forward if isinstance(self.first, nn.Module) else self.first
        try:
            inspect.signature(call).bind("image", "mask")
        except TypeError:
            raise TypeError(f"train_transform={self.first!r} takes an image alone, but there are masks. {_REMEDY}") from None


def _checked(image: Any) -> Any:
    """What a transform returned, if it is an image that can be scaled and normalised."""
    if isinstance(image, np.ndarray):
        right = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
        found = f"an array of shape {image.shape} and {image.dtype}"
    elif isinstance(image, Tensor):
        right, found = image.ndim == 3 and len(image) == 3, f"a tensor of shape {tuple(image.shape)}"
        if right and image.is_floating_point() and len(image.flatten()):
            low, high = (float(value) for value in image.aminmax())
            right, found = 0 <= low <= high <= 1, f"numbers from {low:.3g} to {high:.3g}"
        elif right:
            right, found = image.dtype == torch.uint8, f"a tensor of {image.dtype}"
    else:
        right, found = (
            isinstance(image, Image.Image) and image.mode == "RGB",
            f"{type(image).__name__} {getattr(image, 'mode', '')}",
        )
    if not right:
        raise ValueError(
            f"train_transform returned {found.rstrip()}: return a PIL image (RGB), a tensor (3, H, W), uint8 or in [0, 1], or an "
            "array (H, W, 3) uint8; mean and std are applied afterwards, so leave Normalize out"
        )
    return image


_REMEDY = "Give a transform of torchvision.transforms.v2, or a callable (image, mask) -> (image, mask)"
