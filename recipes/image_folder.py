"""A folder of class folders as a data set."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torchvision import datasets

from groupcam_aug.recipes.image_files import BROKEN, is_image, open_rgb

__all__ = ["PARTS", "ClassFolders", "class_folders"]

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # names of folders that are no classes


def class_folders(root: Path, argument: str = "root") -> list[str]:
    """Sorted names of the class folders in ``root``; hidden folders are passed over.

    Args:
        root: the folder.
        argument: what the user calls it, for messages. Default: "root".

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: there is no class folder, one holds no image, or they are named like parts of a data set.
    """
    if not root.is_dir():
        parent = next((p for p in root.absolute().parents if p.is_dir()), Path("/"))
        found = ", ".join(sorted(p.name for p in parent.iterdir() if p.is_dir())[:8]) or "no folders"
        raise FileNotFoundError(f"{str(root)!r} is no folder; {parent} has {found}. Give {argument} a folder of class folders")
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


class ClassFolders(datasets.ImageFolder):
    """torchvision's ImageFolder with the checks, and the hidden folders passed over, of `class_folders`.

    Args:
        root: folder of class folders.
        transform: from a PIL image, 8-bit RGB.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: as `class_folders`; later, a file that cannot be read.
    """

    def __init__(self, root: Path, transform: Callable) -> None:
        super().__init__(root, transform, loader=_open, is_valid_file=functools.partial(is_image, root=root))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the classes, and their numbers."""
        names = class_folders(Path(directory))
        return names, {name: i for i, name in enumerate(names)}


def _open(path: str) -> Image.Image:
    try:
        return open_rgb(path)
    except BROKEN as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error
