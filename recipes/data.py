"""Images for training: a folder of class folders, or a torchvision data set by name; normalised here and nowhere else."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

from groupcam_aug.recipes.image_files import BROKEN, is_image, open_rgb

__all__ = ["DATASETS", "ImageData", "class_folders", "eval_transform", "normalised", "stratified_split", "train_transform"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL = 64  # pixels; up to here an image is small: kept whole for validation, padded and cropped for training

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # names of folders that are no classes

# name: (torchvision class, arguments of its training, validation and test part, None = no such part, may be downloaded)
DATASETS: dict[str, tuple[str, dict, dict | None, dict | None, bool]] = {
    "cifar10": ("CIFAR10", {"train": True}, None, {"train": False}, True),
    "cifar100": ("CIFAR100", {"train": True}, None, {"train": False}, True),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "val"}, {"split": "test"}, True),
    "imagenet": ("ImageNet", {"split": "train"}, {"split": "val"}, None, False),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}, None, True),
    "oxfordiiitpet": ("OxfordIIITPet", {"split": "trainval"}, None, {"split": "test"}, True),
}


def class_folders(root: Path) -> list[str]:
    """Sorted names of the class folders in ``root``; hidden folders are passed over.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: there is no class folder, one holds no image, or they are named like parts of a data set.
    """
    if not root.is_dir():
        parent = next((p for p in root.absolute().parents if p.is_dir()), Path("/"))
        found = ", ".join(sorted(p.name for p in parent.iterdir() if p.is_dir())[:8]) or "no folders"
        raise FileNotFoundError(f"{str(root)!r} is no folder; {parent} has {found}. Give root a folder of class folders")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise ValueError(
            f"{str(root)!r} has no class folders; expected train/<class>/*.jpg and val/<class>/*.jpg, or root/<class>/*.jpg"
            + (f" (a class cannot be called {root.name!r}: that is a part of the data)" if root.name.lower() in PARTS else "")
        )
    if {name.lower() for name in classes} <= PARTS:
        raise ValueError(
            f"{str(root)!r} holds {', '.join(classes)}, which are no classes; name the parts train/, val/ and perhaps test/"
        )
    for name in classes:
        # As ImageFolder goes through it: links are followed, hidden parts are not.
        files = (Path(folder) / file for folder, _, files in os.walk(root / name, followlinks=True) for file in files)
        if not any(is_image(file, root) for file in files):
            raise ValueError(
                f"class folder {str(root / name)!r} holds no image ({', '.join(datasets.folder.IMG_EXTENSIONS)}); "
                "add images or delete the folder"
            )
    return classes


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
    """PIL image -> (3, H, W) float32: scaled to [0, 1], less ``mean``, by ``std``."""
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])


class ImageData(pl.LightningDataModule):
    """Image classification data; batches are [images (B, 3, size, size) float32 normalised, labels (B,) int64].

    Give ``root`` alone for a folder of images, or ``dataset`` for a torchvision data set kept in ``root``. ``num_classes``,
    ``class_names``, ``size``, ``mean`` and ``std`` can be read right after construction.

    Args:
        root: folder with ``train/``, ``val/`` and ``test/`` of class folders, or one folder of class folders. Without ``val/``,
            ``val_fraction`` of the training images is held out; without ``test/`` the validation images are tested on.
            With ``dataset``: where that is kept. Default: "data".
        dataset: imagenette, cifar10, cifar100, flowers102, oxfordiiitpet or imagenet (from its own folder). Default: None.
        download: fetch ``dataset`` if it is not in ``root``. Default: False.
        size: height and width of the images the network sees, in pixels. Default: 224.
        resize: shorter side before the centre crop in validation. Default: size * 256 / 224; for small images (size <= 64) size.
        train_transform: "crop-resize", "pad-crop", "none", or a callable that takes a PIL image. Default: None =
            "crop-resize", and "pad-crop" for small images.
        batch_size: images per batch and device. Default: 32.
        num_workers: loading processes per device. Default: None = one per CPU core, at most 4.
        val_fraction: share of each class held out when there is no ``val/``, or no such part of ``dataset`` (CIFAR, pets), in
            (0, 1); at least one image. Default: 0.2.
        seed: of the held-out split. Default: 0.
        mean: per channel, subtracted from images in [0, 1]. Default: ImageNet's.
        std: per channel, divides. Default: ImageNet's.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: no class folders, an empty class, other classes in ``val`` than in ``train``, an argument out of range.
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str | None = None,
        download: bool = False,
        size: int = 224,
        resize: int | None = None,
        train_transform: Literal["crop-resize", "pad-crop", "none"] | Callable | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if num_workers is None:
            num_workers = min(4, os.cpu_count() or 1)
        if size < 1 or batch_size < 1 or num_workers < 0 or not 0 < val_fraction < 1:
            raise ValueError(
                f"need size >= 1, batch_size >= 1, num_workers >= 0 and 0 < val_fraction < 1; got {size=}, {batch_size=}, "
                f"{num_workers=}, {val_fraction=}"
            )
        self.root, self.size, self.batch_size, self.num_workers = Path(root).expanduser(), size, batch_size, num_workers
        self.mean, self.std = tuple(mean), tuple(std)
        self.val_fraction, self.seed = val_fraction, seed
        self.resize = resize
        finish = normalised(mean, std)
        if train_transform is None:
            train_transform = "pad-crop" if size <= SMALL else "crop-resize"
        first = _by_name(train_transform, size) if isinstance(train_transform, str) else train_transform
        self._train_transform = _Then(first, finish)
        self._eval_transform = _Then(eval_transform(size, resize), finish)
        self.untestable: str | None = None
        if dataset is None:
            self.train_set, self.val_set, self.test_set, self.class_names = self._from_folder()
        else:
            self.train_set, self.val_set, self.test_set, self.class_names = self._from_torchvision(dataset, download)
        self.num_classes = len(self.class_names)

    def _from_folder(self) -> tuple[Dataset, Dataset, Dataset, list[str]]:
        if not (self.root / "train").is_dir():
            if (self.root / "val").is_dir():
                raise ValueError(
                    f"{str(self.root)!r} has val/ but no train/; add train/, or put the class folders directly in root"
                )
            classes = class_folders(self.root)
            train_set, val_set = self._split(lambda transform: _Folder(self.root, transform))
            return train_set, val_set, val_set, classes
        odd = [path.name for path in self.root.iterdir() if path.is_dir() and _is_odd(path, self.root)]
        if odd:
            raise ValueError(f"{str(self.root)!r} has {', '.join(sorted(odd))} beside train/; name the parts train/, val/, test/")
        classes = class_folders(self.root / "train")
        parts: dict[str, Dataset] = {}
        for part in ("val", "test"):
            if not (self.root / part).is_dir():
                continue
            if part == "test" and not any(p.is_dir() and not p.name.startswith(".") for p in (self.root / part).iterdir()):
                self.untestable = f"{str(self.root / part)!r} has no class folders: add them, or move the folder away"
                continue
            found = class_folders(self.root / part)
            if found != classes:
                raise ValueError(
                    f"{part}/ and train/ in {str(self.root)!r} differ: only in train {_some(set(classes) - set(found))}, "
                    f"only in {part} {_some(set(found) - set(classes))}; give both the same class folders"
                )
            parts[part] = _Folder(self.root / part, self._eval_transform)
        if "val" in parts:
            parts["train"] = _Folder(self.root / "train", self._train_transform)
        else:
            parts["train"], parts["val"] = self._split(lambda transform: _Folder(self.root / "train", transform))
        return parts["train"], parts["val"], parts.get("test", parts["val"]), classes

    def _split(self, make: Callable[[Callable], Any]) -> tuple[Dataset, Dataset]:
        """Training and validation part of the data set that `make` makes with a transform."""
        train, val = make(self._train_transform), make(self._eval_transform)
        # OxfordIIITPet keeps its labels to itself.
        labels = train.targets if hasattr(train, "targets") else train._labels
        kept, held_out = stratified_split(labels, self.val_fraction, self.seed)
        return Subset(train, kept), Subset(val, held_out)

    def _from_torchvision(self, name: str, download: bool) -> tuple[Dataset, Dataset, Dataset, list[str]]:
        key = name.lower()
        if key not in DATASETS:
            raise ValueError(f"dataset={name!r} is none of {', '.join(DATASETS)}; for your own images leave it out and give root")
        attribute, train, val, test, downloads = DATASETS[key]
        if download and not downloads:
            raise ValueError(
                f"dataset={name!r} cannot be downloaded; put it into root={str(self.root)!r} and set download to false"
            )
        make: Any = getattr(datasets, attribute)

        def part_of(part: dict, transform: Callable) -> Any:
            # Imagenette may refuse to download over an existing copy, the one of its other part included.
            present = key == "imagenette" and (self.root / "imagenette2").is_dir()
            return make(self.root, transform=transform, **part, **({"download": True} if download and not present else {}))

        try:
            if val is None:
                train_set, val_set = self._split(functools.partial(part_of, train))
            else:
                train_set, val_set = part_of(train, self._train_transform), part_of(val, self._eval_transform)
            test_set = val_set if test is None else part_of(test, self._eval_transform)
        except (RuntimeError, FileNotFoundError) as error:
            remedy = (
                "set download to true, or root to the folder that has it" if downloads else "give root the folder that has it"
            )
            raise FileNotFoundError(f"dataset={name!r} is not in root={str(self.root)!r} ({error}); {remedy}") from error
        whole = train_set.dataset if isinstance(train_set, Subset) else train_set
        names = getattr(whole, "classes", None) or [str(i) for i in range(102)]  # only Flowers102 of older torchvision has none
        return train_set, val_set, test_set, [name if isinstance(name, str) else name[0] for name in names]

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints, so that a test from one holds out the same images and crops them alike; see `from_checkpoint`."""
        return {"resize": self.resize, "val_fraction": self.val_fraction, "seed": self.seed}

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches; the last one may be smaller."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Validation batches in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Batches of ``test``, or of ``val`` where there is no ``test``, in order."""
        return self._loader(self._tested())

    def predict_dataloader(self) -> DataLoader:
        """The same batches as for ``test``."""
        return self._loader(self._tested())

    def _tested(self) -> Dataset:
        if self.untestable is not None:
            raise ValueError(self.untestable)
        return self.test_set

    def _loader(self, dataset: Dataset, shuffle: bool = False) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def stratified_split(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to keep and to hold out: of each class ``fraction``, rounded, but at least one, chosen by ``seed``; both sorted.

    Raises:
        ValueError: a class has a single sample, which cannot be on both sides.
    """
    generator = torch.Generator().manual_seed(seed)
    kept, held_out = [], []
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    for label, members in sorted(of_class.items()):
        if len(members) < 2:
            raise ValueError(
                f"class number {label} has one image, so none can be held out; add images, or make train/ and val/ yourself"
            )
        count = min(max(1, math.floor(fraction * len(members) + 0.5)), len(members) - 1)
        order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
        held_out += order[:count]
        kept += order[count:]
    return sorted(kept), sorted(held_out)


class _Folder(datasets.ImageFolder):
    """ImageFolder with the checks, and the hidden folders passed over, of `class_folders`."""

    def __init__(self, root: Path, transform: Callable) -> None:
        super().__init__(root, transform, loader=_open, is_valid_file=functools.partial(is_image, root=root))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = class_folders(Path(directory))
        return names, {name: i for i, name in enumerate(names)}


def _is_odd(path: Path, root: Path) -> bool:
    """Whether a folder is a part of the data under another name than ours, and would be passed over."""
    ours = [root / part for part in ("train", "val", "test")]
    same = any(part.exists() and part.samefile(path) for part in ours)  # where file systems do not tell Val from val
    return path.name.lower() in PARTS and not same


def _open(path: str) -> Image.Image:
    try:
        return open_rgb(path)
    except BROKEN as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error


class _Then:
    """Two transforms in a row (picklable, for loading processes)."""

    def __init__(self, first: Callable, second: Callable) -> None:
        self.first, self.second = first, second

    def __call__(self, image: Any) -> torch.Tensor:
        return self.second(self.first(image)).as_subclass(torch.Tensor)


_by_name = train_transform  # the argument of ImageData has the same name


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
