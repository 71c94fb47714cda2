"""A folder of class folders as a data set."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import datasets

from groupcam_aug.recipes.image_files import BROKEN, SUFFIXES, images_in, is_image, open_rgb, passed_over

__all__ = ["PARTS", "ClassFolders", "class_folders", "load_rgb"]

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # names of folders that are no classes


def class_folders(root: Path, argument: str = "root", masks: Path | None = None) -> list[str]:
    """Sorted names of the class folders in ``root``; hidden folders are passed over.

    Args:
        root: the folder.
        argument: what the user calls it, for messages. Default: "root".
        masks: a folder of object masks, which are no images: a folder that holds nothing but them is no class. Default: None.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: there is no class folder, or they are named like parts of a data set.
    """
    if not root.is_dir():
        parent = next((p for p in root.absolute().parents if p.is_dir()), Path("/"))
        found = ", ".join(sorted(p.name for p in parent.iterdir() if p.is_dir())[:8]) or "no folders"
        raise FileNotFoundError(f"{str(root)!r} is no folder; {parent} has {found}. Give {argument} a folder of class folders")
    out = None if masks is None else masks.resolve()

    def of_masks(folder: Path) -> bool:
        real = folder.resolve()
        return out is not None and out.is_relative_to(real) and (real == out or not images_in(folder, out)[0])

    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    classes = sorted(p.name for p in folders if not of_masks(p))
    if not classes:
        raise ValueError(
            f"{str(root)!r} has no class folders; expected train/<class>/*.jpg and val/<class>/*.jpg, or root/<class>/*.jpg"
            + (f" (a class cannot be called {root.name!r}: that is a part of the data)" if root.name.lower() in PARTS else "")
        )
    if {name.lower() for name in classes} <= PARTS:
        raise ValueError(
            f"{str(root)!r} holds {', '.join(classes)}, which are no classes; name the parts train/, val/ and perhaps test/"
        )
    return classes


class ClassFolders(datasets.ImageFolder):
    """torchvision's ImageFolder with the checks, and the hidden folders passed over, of `class_folders`.

    Args:
        root: folder of class folders.
        transform: from a PIL image, 8-bit RGB.
        masks: as in `class_folders`. Default: None.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: as `class_folders`; a class without an image; two of the same files; later, a file that cannot be read.
    """

    def __init__(self, root: Path, transform: Callable, masks: Path | None = None) -> None:
        self._masks = masks
        super().__init__(root, transform, loader=load_rgb)
        self.extensions = SUFFIXES
        # The paths below the folder, with forward slashes: what an image is called wherever the folder lies.
        self.names = [Path(path).relative_to(root).as_posix() for path, _ in self.samples]

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names of the classes, and their numbers."""
        names = class_folders(Path(directory), masks=self._masks)
        return names, {name: i for i, name in enumerate(names)}

    def make_dataset(self, directory: str | Path, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, int]]:
        """Path and label of each image; a warning counts the other files."""
        directory, samples = Path(directory), []
        out = None if self._masks is None else self._masks.resolve()
        class_of: dict[Path, str] = {}  # of each folder that holds images, links followed
        others = Counter("image outside the class folders" for path in directory.iterdir() if is_image(path, directory))
        for name, label in class_to_idx.items():
            images, passed = images_in(directory / name, out)
            if not images:
                told = f" (it has {passed_over(passed)})" if passed else ""
                raise ValueError(
                    f"class folder {str(directory / name)!r} holds no image ({', '.join(SUFFIXES)}){told}; add images or "
                    "delete the folder"
                )
            for folder in sorted({path.parent.resolve() for path in images}):
                if (other := class_of.setdefault(folder, name)) != name:
                    raise ValueError(
                        f"class folders {other!r} and {name!r} in {str(directory)!r} hold the same files, those in "
                        f"{str(folder)!r}: one of them is or has a link there; take it away"
                    )
            samples += [(str(path), label) for path in images]
            others += passed
        if others:
            warnings.warn(f"passed over in {str(directory)!r}: {passed_over(others)} (read: {', '.join(SUFFIXES)})", stacklevel=2)
        return samples


def load_rgb(path: str | Path) -> Image.Image:
    """The picture in a file, upright and in 8-bit RGB.

    Raises:
        ValueError: it cannot be read; the message names the file.
    """
    try:
        return open_rgb(path)
    except BROKEN as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
