"""Embedded data: drawn objects with exact masks, on textured backgrounds that agree with the class as often as you say.

Six classes of objects, six families of background texture, one per class. In training the background shows the family of the
object's own class with probability ``rho``, so a network can take the background as a shortcut. The test splits tell whether it
did: the same objects with backgrounds ``kept`` (own family), ``swapped`` (another family) and ``object_free`` (background alone).
Everything about a sample follows from (seed, split, index); nothing is downloaded and no global random state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from groupcam_aug.recipes.drawing import CLASSES, FAMILIES, NUMBERS, SUPERSAMPLE, draw_shapes

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
        test: samples of the test split. Default: 600.
        rho: how often background and class agree in train and val. Default: 0.9.
        test_backgrounds: "kept", "swapped" or "object_free", what ``test`` and ``predict`` show. Default: "kept".
        batch_size: default 64.
        num_workers: processes for loading; 0 is fastest, the samples are in memory. Default: 0.
        seed: of the data. Default: 0.
        mean: per channel, subtracted from images in [0, 1]. Default: (0.5, 0.5, 0.5).
        std: per channel, divides. Default: (0.25, 0.25, 0.25).

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
        test_backgrounds: str = "kept",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        if test_backgrounds not in SPLITS[2:]:
            raise ValueError(f"test_backgrounds={test_backgrounds!r} is none of {', '.join(SPLITS[2:])}")
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self.class_names = list(CLASSES)
        self.num_classes = len(CLASSES)
        self.batch_size, self.num_workers = batch_size, num_workers
        normalise = v2.Normalize(list(mean), list(std))
        self.train_set, self.val_set, self.test_set = (
            Shapes(split, length, size=size, rho=rho, seed=seed, transform=normalise)
            for split, length in (("train", train), ("val", val), (test_backgrounds, test))
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Validation batches in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Batches of the chosen test split in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader:
        """The same batches as for ``test``."""
        return self._loader(self.test_set)

    def _loader(self, dataset: Shapes, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
