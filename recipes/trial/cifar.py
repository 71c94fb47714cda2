"""CIFAR-10 as tensors in memory, from torchvision's files or from an archive of JPEG files, decoded once and kept."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from groupcam_aug.recipes.trial.stock import WHERE, Stock
from groupcam_aug.recipes.trial.training import Split

__all__ = ["CLASSES", "cifar10", "find_cifar10"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(stock: Stock, per_class: int | None = None) -> tuple[Split, Split]:
    """Training and test images of CIFAR-10, (N, 3, 32, 32) uint8, sorted by class.

    Args:
        stock: whose data folder holds ``cifar10.zip`` (cifar10/train/<class>/*.jpg, cifar10/test/...) or torchvision's
            ``cifar-10-batches-py``; the decoded images are kept in the stock.
        per_class: at most so many images of each class and part. Default: all.

    Raises:
        FileNotFoundError: neither is there.
    """
    source = find_cifar10(stock)
    read = _from_archive if source.suffix == ".zip" else _from_torchvision
    name = f"cifar10-{source.name.replace('.', '-')}-{per_class or 'all'}"
    piece = stock.get(name, lambda: read(source, per_class), mapped=True)
    train, test = (Split(piece[f"{part}_images"], piece[f"{part}_labels"]) for part in ("train", "test"))
    return train, test


def find_cifar10(stock: Stock) -> Path:
    """The archive, or torchvision's folder, in the stock's data folder.

    Raises:
        FileNotFoundError: neither is there.
    """
    folder = stock.file(".", "CIFAR-10")
    for name in ("cifar10.zip", "cifar-10-batches-py"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"CIFAR-10: {str(folder)!r} holds neither cifar10.zip nor cifar-10-batches-py ({WHERE})")


def _from_archive(path: Path, per_class: int | None) -> dict[str, Any]:
    piece: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith((".jpg", ".png")))
        for part in ("train", "test"):
            images, labels = [], []
            for label, of_class in enumerate(CLASSES):
                own = [name for name in names if name.split("/")[-3:-1] == [part, of_class]][:per_class]
                for name in own:
                    with Image.open(io.BytesIO(archive.read(name))) as picture:
                        images.append(np.asarray(picture.convert("RGB")))
                labels += [label] * len(own)
            if not images:
                raise FileNotFoundError(f"{str(path)!r} holds no {part}/<class>/*.jpg")
            piece[f"{part}_images"] = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
            piece[f"{part}_labels"] = torch.tensor(labels)
    return piece


def _from_torchvision(path: Path, per_class: int | None) -> dict[str, Any]:
    from torchvision.datasets import CIFAR10

    piece: dict[str, Any] = {}
    for part in ("train", "test"):
        found = CIFAR10(str(path.parent), train=part == "train")
        labels = torch.tensor(found.targets)
        kept = torch.cat([(labels == label).nonzero()[:per_class, 0] for label in range(len(CLASSES))])
        piece[f"{part}_images"] = torch.from_numpy(found.data)[kept].permute(0, 3, 1, 2).contiguous()
        piece[f"{part}_labels"] = labels[kept]
    return piece
