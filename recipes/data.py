"""Images for training: a folder of class folders, or a torchvision data set by name; normalised here and nowhere else."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from groupcam_aug.recipes.epoch_order import SeededItems, shuffled_loader
from groupcam_aug.recipes.image_folder import PARTS, ClassFolders, class_folders
from groupcam_aug.recipes.image_groups import read_groups, sample_groups
from groupcam_aug.recipes.masked_folder import MaskedFolder
from groupcam_aug.recipes.splits import draw_per_class, stratified_split
from groupcam_aug.recipes.torchvision_sets import DATASETS, torchvision_parts
from groupcam_aug.recipes.trained_images import check_untrained, describe, image_ids, sample_names
from groupcam_aug.recipes.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL,
    Prepare,
    eval_transform,
    normalised,
    train_transform,
)

__all__ = ["DATASETS", "IMAGENET_MEAN", "IMAGENET_STD", "ImageData", "eval_transform", "normalised", "train_transform"]


class ImageData(pl.LightningDataModule):
    """Image classification data; batches are [images (B, 3, size, size) float32 normalised, labels (B,) int64].

    Give ``root`` alone for a folder of images, or ``dataset`` for a torchvision data set kept in ``root``. ``num_classes``,
    ``class_names``, ``size``, ``mean`` and ``std`` can be read right after construction, and ``test_sets``, the data sets to
    test on by name ("test" where they have none).

    Args:
        root: folder with ``train/``, ``val/`` and ``test/`` of class folders, or one folder of class folders. Without ``val/``,
            ``val_fraction`` of the training images is held out; without ``test/`` the validation images are tested on, which is
            said, and ``test="."`` tests on all. Images are turned upright by their EXIF. With ``dataset``: where that is kept.
            Default: "data".
        dataset: imagenette, cifar10, cifar100, flowers102, oxfordiiitpet or imagenet (from its own folder). Default: None.
        download: fetch ``dataset`` if it is not in ``root``. Default: False.
        size: height and width of the images the network sees, in pixels. Default: 224.
        resize: shorter side before the centre crop in validation. Default: size * 256 / 224; for small images (size <= 64) size.
        train_transform: "crop-resize", "pad-crop", "none", or a callable that takes a PIL image; with ``masks`` one that takes
            (image, mask) as those of torchvision v2 do. Default: None = "crop-resize", and "pad-crop" for small images.
        batch_size: images per batch and device. Default: 32.
        num_workers: loading processes per device. Default: None = one per CPU core, at most 4.
        val_fraction: share of each class held out when there is no ``val/``, or no such part of ``dataset`` (CIFAR, pets), in
            (0, 1), about: each image by its path in the folder and ``seed``, whatever others there are; at least one image.
            Default: 0.2.
        seed: of the held-out split and of ``per_class``; None = the run's (`seed_everything`), 0 without one. The order of the
            training images and their random crops are by the run's seed and the epoch. Default: 0.
        mean: per channel, subtracted from images in [0, 1]. Default: ImageNet's.
        std: per channel, divides. Default: ImageNet's.
        test: folder of class folders to test on, in place of ``test/``, absolute or relative to ``root``; or several by name, as
            in {"kept": "test_kept", "shifted": "test_shift"}. Default: None.
        masks: folder of object masks, absolute or relative to ``root``, that mirrors ``root``: the mask of ``train/ant/1.jpg`` is
            ``train/ant/1.png`` in it, as large as its image, not 0 where the object is. Training batches are then [images,
            labels, masks (B, size, size) bool]: masks go through the random transforms of their images, which stay the same;
            the mask of an image without a file is empty. Such a folder below ``root`` is no class. Default: None.
        groups: CSV table, absolute or relative to ``root``, with a column ``file`` (paths relative to ``root``). Each data set
            to test on then has ``groups``: for each sample "CLASS, VALUE", the value from the column ``group_column``.
            Default: None.
        group_column: see ``groups``. Default: "group".
        per_class: train on so many images of each class, drawn after the held-out split. Default: None = all.

    Raises:
        FileNotFoundError: ``root`` or another folder or table is not there.
        ValueError: no class folders, an empty class, two of the same files, other classes to validate or test on than in
            ``train``, fewer images than ``per_class``, no mask at all, a tested file that ``groups`` does not list, an argument
            out of range.
        TypeError: a ``train_transform`` that takes no masks, where there are some.
        TrainedOn (a ValueError): later, images to test or validate on that the network was trained on, as its checkpoint says.
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
        seed: int | None = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        test: str | dict[str, str] | None = None,
        masks: str | None = None,
        groups: str | None = None,
        group_column: str = "group",
        per_class: int | None = None,
    ) -> None:
        super().__init__()
        if num_workers is None:
            num_workers = min(4, os.cpu_count() or 1)
        if size < 1 or batch_size < 1 or num_workers < 0 or not 0 < val_fraction < 1:
            raise ValueError(
                f"need size >= 1, batch_size >= 1, num_workers >= 0 and 0 < val_fraction < 1; got {size=}, {batch_size=}, "
                f"{num_workers=}, {val_fraction=}"
            )
        if per_class is not None and per_class < 1:
            raise ValueError(f"per_class must be at least 1, got {per_class}")
        if test is not None and not test:
            raise ValueError(f"test={test!r} names no folder; leave it out to test on test/, or on val/")
        of_folders = {"test": test, "masks": masks, "groups": groups}
        if dataset is not None and (given := [name for name, value in of_folders.items() if value is not None]):
            raise ValueError(f"{', '.join(given)} go with folders in root, not with dataset={dataset!r}; leave one out")
        self.root, self.size, self.batch_size, self.num_workers = Path(root).expanduser(), size, batch_size, num_workers
        self.mean, self.std = tuple(mean), tuple(std)
        self.val_fraction, self.resize = val_fraction, resize
        # Lightning leaves the seed of the run there.
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.masks = None if masks is None else self.root / Path(masks).expanduser()
        finish = normalised(mean, std)
        if train_transform is None:
            train_transform = "pad-crop" if size <= SMALL else "crop-resize"
        first = _by_name(train_transform, size) if isinstance(train_transform, str) else train_transform
        self._train_transform = Prepare(first, finish)
        self._eval_transform = Prepare(eval_transform(size, resize), finish)
        self._several_tests = isinstance(test, dict)
        # From a checkpoint: which images were trained on (`image_ids`; None: it does not say), and the seed of the order.
        self._trained: Tensor | None = torch.empty(0, dtype=torch.int64)
        self._stage = ""  # that a Trainer has begun
        self._order_seed: int | None = None
        self._sampled_by: int | None = None  # the seed of the order in this fit
        self._fitting = False
        self.untestable: str | None = None
        self.test_sets: dict[str, Any]
        if dataset is None:
            named = {"test": test} if isinstance(test, str) else test
            self.train_set, self.val_set, self.test_sets, self.class_names = self._from_folder(named)
        else:
            self.train_set, self.val_set, test_set, self.class_names = self._from_torchvision(dataset, download)
            self.test_sets = {"test": test_set}
        # All that is tested on, in order: what `predict` goes over.
        self.test_set = ConcatDataset(self.test_sets.values()) if len(self.test_sets) > 1 else next(iter(self.test_sets.values()))
        self.num_classes = len(self.class_names)
        if per_class is not None:
            self.train_set = _drawn(self.train_set, per_class, self.seed)
        if groups is not None:
            self._add_groups(self.root / Path(groups).expanduser(), group_column)

    def _from_folder(self, test: dict[str, str] | None) -> tuple[Dataset, Dataset, dict[str, Any], list[str]]:
        apart = (self.root / "train").is_dir()
        if not apart and (self.root / "val").is_dir():
            raise ValueError(f"{str(self.root)!r} has val/ but no train/; add train/, or put the class folders directly in root")
        tests = {name: self.root / Path(folder).expanduser() for name, folder in (test or {}).items()}
        if apart and (odd := [p.name for p in self.root.iterdir() if _is_odd(p, self.root, tests.values())]):
            raise ValueError(f"{str(self.root)!r} has {', '.join(sorted(odd))} beside train/; name the parts train/, val/, test/")
        folder = self.root / "train" if apart else self.root
        classes = class_folders(folder, masks=self.masks)
        train_set: Dataset = self._train_folder(folder)
        if apart and (self.root / "val").is_dir():
            val_set: Dataset = self._evaluated(self.root / "val", classes)
        else:
            train_set, val_set = self._split(train_set, ClassFolders(folder, self._eval_transform, self.masks))
        if not tests and apart and (own := self.root / "test").is_dir():
            if any(p.is_dir() and not p.name.startswith(".") for p in own.iterdir()):
                tests = {"test": own}
            else:
                self.untestable = f"{str(own)!r} has no class folders: add them, or move the folder away"
        sets = {name: self._evaluated(path, classes) for name, path in tests.items()}
        return train_set, val_set, sets or {"test": val_set}, classes

    def _train_folder(self, folder: Path) -> ClassFolders:
        if self.masks is None:
            return ClassFolders(folder, self._train_transform)
        return MaskedFolder(folder, self._train_transform, self.root, self.masks)

    def _evaluated(self, folder: Path, classes: list[str]) -> ClassFolders:
        """A folder to validate or test on, if its classes are those of the training."""
        found = class_folders(folder, "val" if folder == self.root / "val" else "test", self.masks)
        if found != classes:
            part = folder.relative_to(self.root) if folder.is_relative_to(self.root) else folder
            raise ValueError(
                f"{part}/ and train/ in {str(self.root)!r} differ: only in train {_some(set(classes) - set(found))}, "
                f"only in {part} {_some(set(found) - set(classes))}; give both the same class folders"
            )
        return ClassFolders(folder, self._eval_transform, self.masks)

    def _split(self, train: Any, val: Any) -> tuple[Dataset, Dataset]:
        """Training and validation part of the same samples with two transforms."""
        kept, held_out = stratified_split(_labels(train), self.val_fraction, self.seed, sample_names(train))
        return Subset(train, kept), Subset(val, held_out)

    def _add_groups(self, table: Path, column: str) -> None:
        values = read_groups(table, column)
        for dataset in self.test_sets.values():
            whole, indices = _whole(dataset)
            samples = [whole.samples[i] for i in indices]
            dataset.groups = sample_groups(samples, self.root, self.class_names, values, table)

    def _from_torchvision(self, name: str, download: bool) -> tuple[Dataset, Dataset, Dataset, list[str]]:
        transforms = self._train_transform, self._eval_transform
        train, again, val, test, names = torchvision_parts(name, self.root, download, *transforms)
        train_set, val_set = self._split(train, again) if val is None else (train, val)
        return train_set, val_set, val_set if test is None else test, names

    def setup(self, stage: str) -> None:
        """Forget the training before; refuse what cannot be tested on."""
        if stage == "fit":
            self._fitting, self._order_seed, self._trained = True, None, torch.empty(0, dtype=torch.int64)
        self._stage = stage
        self._check(stage)
        if stage == "fit" and isinstance(self.val_set, Subset):
            rank_zero_info(self._about_split(self.val_set))

    def _about_split(self, held_out: Subset) -> str:
        """How many images of each class are held out; of many classes the fewest and the most."""
        whole, indices = _whole(held_out)
        labels = _labels(whole)
        counts = Counter(self.class_names[labels[i]] for i in indices)
        each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        if len(counts) > 12:
            each = f"{min(counts.values())} to {max(counts.values())} a class"
        few = ""
        if min(counts.values()) < 5:
            few = " A class has so few that its accuracy says little: choose images yourself, in val/."
        return f"validation: {len(indices)} of {len(whole)} images, held out by their names ({each}).{few}"

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: how images were cropped, what was held out, what was trained on (int64), the seed of the order."""
        state: dict[str, Any] = {"resize": self.resize, "val_fraction": self.val_fraction, "seed": self.seed}
        trained = self._trained_on()
        return state | {"order_seed": self._sampled_by} | ({} if trained is None else {"trained": trained})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the order of a checkpoint, and know what its network was trained on."""
        self._order_seed, self._trained = state_dict.get("order_seed"), state_dict.get("trained")
        self._check(self._stage)

    def _check(self, stage: str) -> None:
        """Refuse images that were trained on, in a stage that is begun.

        Not where the loaders are made: an error there leaves Lightning's wrapping of `DataLoader.__init__` behind.
        """
        if stage in ("fit", "validate"):
            check_untrained(self.val_set, self._trained, "validate")
        elif stage in ("test", "predict"):
            if self.untestable is not None:
                raise ValueError(self.untestable)
            for dataset in self.test_sets.values() if stage == "test" else ():
                check_untrained(dataset, self._trained_on(), "test")

    def _check_by_hand(self, stage: str) -> None:
        if self.trainer is None:  # which would have begun the stage
            self._check(stage)

    def _trained_on(self) -> Tensor | None:
        """Numbers of the images that the network was trained on, as far as known."""
        if self._trained is None or not self._fitting:
            return self._trained
        return torch.cat([self._trained, self._train_ids]).unique()

    @functools.cached_property
    def _train_ids(self) -> Tensor:
        return image_ids(self.train_set)

    def train_dataloader(self) -> DataLoader:
        """Training batches in a new order every epoch, by the run's seed and the epoch; the last one may be smaller."""
        data = SeededItems(self.train_set)
        loader = shuffled_loader(data, self.batch_size, self.trainer, self._order_seed, **self._loading)
        self._sampled_by = loader.sampler.run_seed  # type: ignore[attr-defined]
        return loader

    def val_dataloader(self) -> DataLoader:
        """Validation batches in order."""
        self._check_by_hand("validate")
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader | dict[str, DataLoader]:
        """Batches of ``test``, or of ``val`` where there is no ``test``, in order; a dict by name where ``test`` has names."""
        self._check_by_hand("test")
        for name, dataset in self.test_sets.items():
            rank_zero_info(f"{'test' if name == 'test' else f'test {name!r}'}: {self._about(dataset)}")
        if self._several_tests:
            return {name: self._loader(dataset) for name, dataset in self.test_sets.items()}
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader:
        """The same batches as for ``test``, of several folders one after the other; images trained on are no hindrance."""
        self._check_by_hand("predict")
        for dataset in self.test_sets.values():
            rank_zero_info(f"predict: {self._about(dataset)}")
        return self._loader(self.test_set)

    def _about(self, dataset: Any) -> str:
        return describe(dataset, self.root, f"val_fraction={self.val_fraction} and seed={self.seed}")

    @property
    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    def _loader(self, dataset: Dataset) -> DataLoader:
        return DataLoader(dataset, batch_size=self.batch_size, **self._loading)


def _drawn(dataset: Dataset, per_class: int, seed: int) -> Subset:
    whole, indices = _whole(dataset)
    labels, names = _labels(whole), sample_names(whole)
    drawn = draw_per_class([labels[i] for i in indices], per_class, seed, [names[i] for i in indices])
    return Subset(whole, [indices[i] for i in drawn])


def _whole(dataset: Any) -> tuple[Any, Sequence[int]]:
    """The data set that this one is a part of, and which samples it has of it."""
    return (dataset.dataset, dataset.indices) if isinstance(dataset, Subset) else (dataset, range(len(dataset)))


def _labels(dataset: Any) -> Sequence[int]:
    return dataset.targets if hasattr(dataset, "targets") else dataset._labels  # OxfordIIITPet keeps them to itself


def _is_odd(path: Path, root: Path, tests: Iterable[Path]) -> bool:
    """Whether a folder is a part of the data under another name than ours, and would be passed over."""
    known = [*(root / part for part in ("train", "val", "test")), *tests]
    same = any(part.exists() and part.samefile(path) for part in known)  # where file systems do not tell Val from val
    return path.is_dir() and path.name.lower() in PARTS and not same


_by_name = train_transform  # the argument of ImageData has the same name


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"
