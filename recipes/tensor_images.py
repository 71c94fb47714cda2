"""Small labelled images held in memory: an epoch costs little more than indexing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from groupcam_aug.recipes.epoch_order import EpochIndex, shuffled_loader

__all__ = ["TensorImages", "image_loader"]


def image_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    num_workers: int = 0,
    drop_last: bool = False,
    trainer: pl.Trainer | None = None,
) -> DataLoader:
    """A loader whose batches are [images (B, 3, H, W), labels (B,), ...], the images in channels-last layout.

    Args:
        dataset: `TensorImages`, or others put one after the other.
        batch_size: samples per batch.
        shuffle: a new order in every epoch, by the run's seed and the epoch (see `shuffled_loader`). Default: False.
        num_workers: processes for loading; 0 is fastest for samples in memory. Default: 0.
        drop_last: leave out what does not fill a batch. Default: False.
        trainer: whose processes share what is shuffled. Default: None.
    """
    options: dict[str, Any] = {"num_workers": num_workers, "drop_last": drop_last, "persistent_workers": num_workers > 0}
    if shuffle:
        return shuffled_loader(dataset, batch_size, trainer, collate_fn=_collate, **options)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=_collate, **options)


class TensorImages(Dataset[tuple[Any, ...]]):
    """Labelled images in memory; a sample is (image, label) or (image, label, mask).

    Image: (3, H, W) float32, normalised; label: int; mask: (H, W) bool, true on the object.

    Args:
        draw: makes the data when the first sample is asked for: images (N, 3, H, W) uint8, labels (N,) int64 and masks
            (N, H, W) bool.
        length: N.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divides.
        flip: flip each sample, image and mask, horizontally with probability a half: in a shuffled `image_loader` by seed, epoch
            and sample, else drawn anew every time from torch's global random numbers. Default: False.
        masks: samples have their mask; their images stay the same. Default: False.
        groups: name of each sample's group, in order, for accuracy by group; kept as an attribute. Default: None.
    """

    def __init__(
        self,
        draw: Callable[[], tuple[Tensor, Tensor, Tensor]],
        length: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool = False,
        masks: bool = False,
        groups: list[str] | None = None,
    ) -> None:
        self.draw, self.length, self.flip, self.masks, self.groups = draw, length, flip, masks, groups
        self._mean, self._std = (torch.tensor([float(value) for value in values]).view(3, 1, 1) for values in (mean, std))
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None
        self._flips: tuple[int, Tensor] | None = None  # the epoch's seed, and which samples are turned in it

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One sample; a negative index counts from the end."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, ...]]:
        """The samples of a batch, which a `DataLoader` asks for at once."""
        images, labels, masks = (part[indices] for part in self.tensors())
        if self.flip:
            turned = self._turned(indices)
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
            masks = torch.where(turned[:, None, None], masks.flip(2), masks)
        parts = (images.float().div_(255).sub_(self._mean).div_(self._std), labels.tolist(), masks)
        return list(zip(*parts[: 3 if self.masks else 2], strict=True))

    def _turned(self, indices: list[int]) -> Tensor:
        if not isinstance(indices[0], EpochIndex):
            return torch.rand(len(indices)) < 0.5
        if self._flips is None or self._flips[0] != indices[0].seed:
            generator = torch.Generator().manual_seed(indices[0].seed >> 1)
            self._flips = indices[0].seed, torch.rand(self.length, generator=generator) < 0.5
        return self._flips[1][indices]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of it as drawn: images (N, 3, H, W) uint8, labels (N,) int64, masks (N, H, W) bool; not to be written to."""
        if self._drawn is None:
            self._drawn = self.draw()
        return self._drawn


def _collate(samples: list[tuple[Any, ...]]) -> list[Any]:
    batch: list[Any] = default_collate(samples)
    batch[0] = batch[0].contiguous(memory_format=torch.channels_last)  # convolutions on a CPU are faster so
    return batch
