"""Embedded data: drawn objects with exact masks, on textured backgrounds that agree with the class as often as you say.

Six classes of objects, six families of background texture, one per class. In training the background shows the family of the
object's own class with probability ``rho``, so a network can take the background as a shortcut. The test splits tell whether it
did: the same objects with backgrounds ``kept`` (own family), ``swapped`` (another family) and ``object_free`` (background alone).
Everything about a sample follows from (seed, split, index); nothing is downloaded and no global random state is touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from groupcam_aug.recipes.drawing import CLASSES, FAMILIES, NUMBERS, SUPERSAMPLE, draw_shapes
from groupcam_aug.recipes.tensor_images import TensorImages, image_loader

__all__ = ["CLASSES", "FAMILIES", "SPLITS", "Shapes", "ShapesDataModule"]

SPLITS = ("train", "val", "kept", "swapped", "object_free")

_STREAMS = {"train": 0, "val": 1, "kept": 2, "swapped": 2, "object_free": 2}  # the test splits show the same objects
_BLOCK = 128  # samples drawn (and cached) together


class Shapes(Dataset[tuple[Tensor, int]]):
    """A split of the drawn data; classes are balanced and follow the index (``label = index % 6``).

    A sample is (image, label): image (3, size, size) float32 in [0, 1] (or what ``transform`` makes of it), label an int. In
    ``object_free`` the label is the class whose texture family is shown. Samples are drawn on first use and kept (uint8).

    Args:
        split: "train" or "val" (own family with probability ``rho``, else one of the others), "kept", "swapped" or "object_free".
            Default: "train".
        length: number of samples. Default: 3000.
        size: pixels a side, at least 32. Default: 32.
        rho: how often background and class agree in train and val, in [0, 1]; 1/6 = independent. Default: 0.9.
        seed: another seed gives other data. Default: 0.
        transform: callable on the float image. Default: None.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 3000,
        *,
        size: int = 32,
        rho: float = 0.9,
        seed: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is none of {', '.join(SPLITS)}")
        if length < 1 or size < 32 or not 0 <= rho <= 1 or seed < 0:
            raise ValueError(f"need length >= 1, size >= 32, 0 <= rho <= 1, seed >= 0; got {length=}, {size=}, {rho=}, {seed=}")
        self.split, self.length, self.size, self.rho, self.seed, self.transform = split, length, size, rho, seed, transform
        self.classes = list(CLASSES)
        self._blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image and label of one sample; a negative index counts from the end."""
        index = self._checked(index)
        image = self._block(index // _BLOCK)[0][index % _BLOCK].float() / 255
        return image if self.transform is None else self.transform(image), index % len(CLASSES)

    def mask(self, index: int) -> Tensor:
        """The object's exact mask, (size, size) bool; all false in ``object_free``."""
        index = self._checked(index)
        return self._block(index // _BLOCK)[1][index % _BLOCK].clone()

    def family(self, index: int) -> str:
        """The texture family behind the object, one of `FAMILIES`."""
        return FAMILIES[int(self._recipe([self._checked(index)])[2])]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The whole split: images (N, 3, size, size), transformed if asked, labels (N,) int64, masks (N, size, size) bool."""
        images, labels = zip(*(self[i] for i in range(self.length)), strict=True)
        return torch.stack(images), torch.tensor(labels), torch.stack([self.mask(i) for i in range(self.length)])

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """The split as drawn: images (N, 3, size, size) uint8, labels (N,) int64, masks (N, size, size) bool."""
        blocks = [self._block(block) for block in range(math.ceil(self.length / _BLOCK))]
        images, masks = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return images, torch.arange(self.length) % len(CLASSES), masks

    def _checked(self, index: int) -> int:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside this split of {self.length} samples")
        return index % self.length

    def _recipe(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        stream = _STREAMS[self.split]
        # Philox is counter based: a sample's numbers need no other sample's.
        keys = (np.random.Philox(key=np.array([self.seed, (stream << 48) + i], dtype=np.uint64)) for i in indices)
        numbers = torch.from_numpy(np.stack([np.random.Generator(key).random(NUMBERS + 2, dtype=np.float32) for key in keys]))
        labels = torch.tensor(indices) % len(CLASSES)
        agree = {"train": self.rho, "val": self.rho, "swapped": 0.0}.get(self.split, 1.0)
        others = 1 + (numbers[:, 1] * (len(FAMILIES) - 1)).long().clamp(max=len(FAMILIES) - 2)
        families = torch.where(numbers[:, 0] < agree, labels, (labels + others) % len(FAMILIES))
        return numbers[:, 2:], labels, families

    def _block(self, block: int) -> tuple[Tensor, Tensor]:
        if block not in self._blocks:
            indices = list(range(block * _BLOCK, min((block + 1) * _BLOCK, self.length)))
            # At most some 40 MB per plane of intermediate results, whatever the size.
            chunks = np.array_split(indices, math.ceil(len(indices) * (self.size * SUPERSAMPLE) ** 2 / 1e7))
            drawn = [
                draw_shapes(*self._recipe(chunk.tolist()), self.size, with_object=self.split != "object_free")
                for chunk in chunks
                if len(chunk)
            ]
            self._blocks[block] = torch.cat([image for image, _ in drawn]), torch.cat([mask for _, mask in drawn])
        return self._blocks[block]


class ShapesDataModule(pl.LightningDataModule):
    """The drawn data for a Trainer or the command line; batches are [images (B, 3, size, size) normalised, labels (B,)].

    Args:
        size: pixels a side, at least 32. Default: 32.
        train: samples for training. Default: 3000.
        val: samples for validation (same ``rho``). Default: 600.
        test: samples of each test split. Default: 600.
        rho: how often background and class agree in train and val. Default: 0.9.
        test_backgrounds: "kept", "swapped" or "object_free", what ``test`` and ``predict`` show; or a list of them, then
            `test_dataloader` returns one loader for each, by name. Default: "kept".
        batch_size: default 64.
        num_workers: processes for loading; 0 is fastest, the samples are in memory. Default: 0.
        seed: of the data. None: the run's, as ``seed_everything`` left it (0 without). Default: 0.
        mean: per channel, subtracted from images in [0, 1]. Default: (0.5, 0.5, 0.5).
        std: per channel, divides. Default: (0.25, 0.25, 0.25).
        flip: flip half of the training images (and their masks) horizontally, at random. Default: False.
        masks: training batches have a third item, the objects' exact masks (B, size, size) bool; the images stay the same, bit
            for bit. Default: False.
        drop_last: leave out the training samples that do not fill a batch. Default: False.

    Attributes:
        test_sets: data set of each test split, by name.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        size: int = 32,
        train: int = 3000,
        val: int = 600,
        test: int = 600,
        rho: float = 0.9,
        test_backgrounds: str | list[str] = "kept",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = 0,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
        flip: bool = False,
        masks: bool = False,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        names = [test_backgrounds] if isinstance(test_backgrounds, str) else list(test_backgrounds)
        if not names or not set(names) <= set(SPLITS[2:]):
            raise ValueError(f"test_backgrounds={test_backgrounds!r}: give one or more of {', '.join(SPLITS[2:])}")
        if drop_last and train < batch_size:
            raise ValueError(f"drop_last leaves no batch of {batch_size=} from {train=}; give a smaller batch_size")
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning's seed_everything leaves it
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self.class_names = list(CLASSES)
        self.num_classes = len(CLASSES)
        self.batch_size, self.num_workers, self.drop_last = batch_size, num_workers, drop_last
        self.several = not isinstance(test_backgrounds, str)

        def images(split: str, length: int, **options: Any) -> TensorImages:
            shapes = Shapes(split, length, size=size, rho=rho, seed=seed)
            return TensorImages(shapes.drawn, length, mean=mean, std=std, **options)

        self.train_set = images("train", train, flip=flip, masks=masks)
        self.val_set = images("val", val)
        self.test_sets = {name: images(name, test) for name in names}

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader(self.train_set, shuffle=True, drop_last=self.drop_last)

    def val_dataloader(self) -> DataLoader:
        """Validation batches in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader | dict[str, DataLoader]:
        """Batches of the chosen test split in order; where a list was given, a loader for each by name."""
        loaders = {name: self._loader(dataset) for name, dataset in self.test_sets.items()}
        return loaders if self.several else next(iter(loaders.values()))

    def predict_dataloader(self) -> DataLoader:
        """The same samples as for ``test``, one split after the other."""
        return self._loader(ConcatDataset(self.test_sets.values()))

    def _loader(self, dataset: Dataset, **options: bool) -> DataLoader:
        return image_loader(dataset, self.batch_size, num_workers=self.num_workers, trainer=self.trainer, **options)
