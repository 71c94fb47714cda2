"""Photographs of CIFAR-10 in drawn scenes whose family agrees with the class as often as you say.

With ``shortcut="texture"`` a family is the direction and width of waves, which a strong blur takes away; with ``"colour"`` it
is a hue, which no blur can take away. The test sets show the same photographs in scenes of their class's family (``same``) and
of any (``rand``). Everything follows from the seed; no global random state is touched.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from groupcam_aug.recipes.image_files import is_image, open_rgb
from groupcam_aug.recipes.tensor_images import TensorImages, image_loader
from groupcam_aug.recipes.trial.scenery import draw_scenes

__all__ = ["CLASSES", "Scenes", "ScenesDataModule"]

CLASSES = ("airplane", "automobile", "frog", "horse", "ship", "deer", "bird", "truck", "cat", "dog")  # easiest first
SPLITS = ("train", "val", "test")


class Scenes:
    """Photographs in scenes; classes are balanced and follow the index (``label = index % kinds``).

    Args:
        root: folder with ``train/<class>/*`` and ``test/<class>/*``, 32 x 32 pixels.
        split: "train" (the first four fifths of a class's training photographs, by name), "val" (the last fifth) or "test".
        length: number of samples; photographs are drawn without repetition as long as there are enough.
        shortcut: what tells the families of scenes apart, "texture" or "colour".
        rho: how often the scene is of the class's family, else of another's; None: of any family, all equally likely.
        pixels: a side of the scene; photographs get 7/16 to 10/16 of it.
        kinds: number of classes, the first of `CLASSES`.
        seed: of all draws.
    """

    def __init__(
        self, root: Path, split: str, length: int, *, shortcut: str, rho: float | None, pixels: int, kinds: int, seed: int
    ) -> None:
        self.root, self.split, self.length, self.shortcut, self.pixels = root, split, length, shortcut, pixels
        self.rho, self.kinds, self.seed = rho, kinds, seed

    def families(self) -> Tensor:
        """Family of each sample's scene, (N,) int64; family k goes with class k."""
        return self._families(self._generator())

    def groups(self) -> list[str]:
        """Group of each sample: its class, and whether the scene is the usual one."""
        families = self.families().tolist()
        scenes = ("its usual" if family == i % self.kinds else "another" for i, family in enumerate(families))
        return [f"{CLASSES[i % self.kinds]} in {scene} scene" for i, scene in enumerate(scenes)]

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, pixels, pixels) uint8, labels (N,) int64, masks (N, pixels, pixels) bool, true on the photograph.

        Raises:
            ValueError: a class without images, or an image that is not of 32 x 32 pixels.
        """
        generator = self._generator()
        families, labels = self._families(generator), torch.arange(self.length) % self.kinds
        photographs = torch.empty(self.length, 3, 32, 32)
        for label in range(self.kinds):
            samples = torch.arange(label, self.length, self.kinds)
            paths = self._paths(CLASSES[label])
            order = torch.randperm(len(paths), generator=generator)[: len(samples)].tolist()
            read = torch.stack([_read(paths[i]) for i in order])
            photographs[samples] = read[torch.arange(len(samples)) % len(read)].float()
        images, masks = draw_scenes(photographs, families, self.kinds, self.pixels, self.shortcut, generator)
        return images, labels, masks

    def _generator(self) -> torch.Generator:
        numbers = np.random.SeedSequence((self.seed, 3, SPLITS.index(self.split))).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(numbers[0] >> np.uint64(1)))

    def _families(self, generator: torch.Generator) -> Tensor:
        chance, labels = torch.rand(self.length, 2, generator=generator), torch.arange(self.length) % self.kinds
        if self.rho is None:
            return (chance[:, 1] * self.kinds).long().clamp(max=self.kinds - 1)
        others = 1 + (chance[:, 1] * (self.kinds - 1)).long().clamp(max=self.kinds - 2)
        return torch.where(chance[:, 0] < self.rho, labels, (labels + others) % self.kinds)

    def _paths(self, name: str) -> list[Path]:
        folder = self.root / ("test" if self.split == "test" else "train") / name
        paths = sorted(path for path in folder.iterdir() if is_image(path, folder))
        edge = max(1, len(paths) * 4 // 5)  # training and validation show other photographs
        chosen = {"train": paths[:edge], "val": paths[edge:], "test": paths}[self.split]
        if not chosen:
            raise ValueError(f"{str(folder)!r} has {len(paths)} images, too few for a split {self.split!r}")
        return chosen


class ScenesDataModule(pl.LightningDataModule):
    """`Scenes` for a Trainer or the command line; batches are [images (B, 3, pixels, pixels) normalised, labels (B,)].

    ``test`` shows two sets by name: "same" and "rand"; ``test_sets["rand"].groups`` names each sample's class and whether its
    scene is the usual one.

    Args:
        root: CIFAR-10 as a folder of images: ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``. Default: "cifar10".
        shortcut: what tells the scenes apart, "texture" or "colour". Default: "texture".
        rho: how often a scene of train and val is of its class's family, in [0, 1]. Default: 0.9.
        train: samples for training. Default: 1600.
        val: samples for validation. Default: 200.
        test: samples of each test set. Default: 800.
        pixels: a side of the images, at least 16. Default: 48.
        kinds: number of classes, 2 to 10, the first of `CLASSES`. Default: 2.
        batch_size: default 64; what is left over in an epoch is left out.
        num_workers: processes for loading; 0 is fastest, the samples are in memory. Default: 0.
        seed: of the data. Default: None = the run's, as ``seed_everything`` left it (0 without).
        masks: training batches have a third item, the photographs' masks (B, pixels, pixels) bool. Default: False.
        flip: flip half of the training images horizontally. Default: None = for "colour" only: the direction of a texture tells
            its family, and a flip would turn it into another's.
        mean: per channel, subtracted from images in [0, 1]. Default: (0.5, 0.5, 0.5).
        std: per channel, divides. Default: (0.25, 0.25, 0.25).

    Attributes:
        test_sets: data set of each test set, by name.

    Raises:
        FileNotFoundError: a class folder is missing.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        root: str = "cifar10",
        shortcut: Literal["texture", "colour"] = "texture",
        rho: float = 0.9,
        train: int = 1600,
        val: int = 200,
        test: int = 800,
        pixels: int = 48,
        kinds: int = 2,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
        masks: bool = False,
        flip: bool | None = None,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        if shortcut not in ("texture", "colour"):
            raise ValueError(f"shortcut={shortcut!r} is neither 'texture' nor 'colour'")
        if not 0 <= rho <= 1 or not 2 <= kinds <= len(CLASSES) or pixels < 16 or train < batch_size or min(val, test) < 1:
            raise ValueError(
                "need rho in [0, 1], kinds 2 to 10, pixels from 16, train from batch_size, val and test from 1; "
                f"got {rho=}, {kinds=}, {pixels=}, {train=}, {batch_size=}, {val=}, {test=}"
            )
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning's seed_everything leaves it
        folder = Path(root).expanduser()
        needed = [folder / part / name for part in ("train", "test") for name in CLASSES[:kinds]]
        if missing := [path for path in needed if not path.is_dir()]:
            raise FileNotFoundError(
                f"{str(missing[0])!r} is no folder; give root= CIFAR-10 as train/<class>/*.jpg and test/<class>/*.jpg"
            )
        self.size, self.mean, self.std = pixels, tuple(mean), tuple(std)
        self.class_names, self.num_classes = list(CLASSES[:kinds]), kinds
        self.batch_size, self.num_workers = batch_size, num_workers

        def scenes(split: str, length: int, rho: float | None) -> Scenes:
            return Scenes(folder, split, length, shortcut=shortcut, rho=rho, pixels=pixels, kinds=kinds, seed=seed)

        def images(drawn: Scenes, **options: Any) -> TensorImages:
            return TensorImages(drawn.drawn, drawn.length, mean=mean, std=std, **options)

        self.train_set = images(scenes("train", train, rho), flip=shortcut == "colour" if flip is None else flip, masks=masks)
        self.val_set = images(scenes("val", val, rho))
        rand = scenes("test", test, None)
        self.test_sets = {"same": images(scenes("test", test, 1.0)), "rand": images(rand, groups=rand.groups())}

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """Validation batches in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> dict[str, DataLoader]:
        """Batches of each test set in order, by name."""
        return {name: self._loader(dataset) for name, dataset in self.test_sets.items()}

    def predict_dataloader(self) -> DataLoader:
        """The samples of both test sets, one after the other."""
        return self._loader(ConcatDataset(self.test_sets.values()))

    def _loader(self, dataset: Dataset, **options: bool) -> DataLoader:
        return image_loader(dataset, self.batch_size, num_workers=self.num_workers, trainer=self.trainer, **options)


def _read(path: Path) -> Tensor:
    image: Image.Image = open_rgb(path)
    if image.size != (32, 32):
        raise ValueError(f"{str(path)!r} has {image.size[0]} x {image.size[1]} pixels; CIFAR-10's photographs have 32 x 32")
    return pil_to_tensor(image)
