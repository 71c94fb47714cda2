"""Whether a batch is what `Classifier` can train on: a clear sentence in place of an error from deep inside the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_images", "images_and_labels"]


def images_and_labels(batch: Any, num_classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and labels of a batch [images, labels, ...]; values are read on the CPU alone.

    Args:
        batch: of a loader.
        num_classes: width of soft labels.
        dtype: of the network's parameters.

    Raises:
        TypeError: a batch, images or labels of another kind.
        ValueError: images or labels of another shape, a label beyond the classes.
    """
    if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) < 2:
        keys = f" with {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise TypeError(f"the batch is a {type(batch).__name__}{keys}; Classifier takes [images, labels]: change the collate_fn")
    images, labels = batch[0], batch[1]
    check_images(images, dtype)
    if not isinstance(labels, Tensor):
        few = ", ".join(repr(label) for label in labels[:3]) if isinstance(labels, list | tuple) else repr(labels)
        raise TypeError(f"the labels are a {type(labels).__name__} ({few}): give their numbers, an int64 tensor (N,), from 0")
    soft = labels.is_floating_point() and labels.shape == (len(images), num_classes)
    if not soft and (labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)} and {labels.dtype} for {len(images)} images and {num_classes} classes: "
            "give numbers of classes (N,) int64, or shares (N, num_classes) float"
        )
    if not soft and labels.device.type == "cpu" and len(labels) and int(labels.max()) >= num_classes:
        raise ValueError(f"there is a label {int(labels.max())}, but the network has {num_classes} classes, from 0")
    return images, labels if soft else labels.long()


def check_images(images: Any, dtype: torch.dtype) -> None:
    """Refuse what is no batch of images (N, C, H, W) of floating point numbers.

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: another shape.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"the images are a {type(images).__name__}: give a tensor (N, 3, H, W) float32")
    if images.ndim == 4 and images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"the images have shape {tuple(images.shape)}, channels last: permute(0, 3, 1, 2) makes them (N, 3, H, W)"
        )
    if images.ndim != 4:
        raise ValueError(f"the images have shape {tuple(images.shape)}: give (N, 3, H, W)")
    if not images.is_floating_point():
        raise TypeError(f"the images are {images.dtype}: give them in float32, scaled to [0, 1] and normalised")
    if images.dtype == torch.float64 != dtype:
        raise TypeError(f"the images are {images.dtype}, the network is {dtype}: call .float() on them")
