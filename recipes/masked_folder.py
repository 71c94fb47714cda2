"""Object masks beside images: a folder that mirrors the images' folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from groupcam_aug.recipes.image_files import BROKEN
from groupcam_aug.recipes.image_folder import ClassFolders
from groupcam_aug.recipes.transforms import Prepare

__all__ = ["MaskedFolder", "mask_file", "open_mask"]


class MaskedFolder(ClassFolders):
    """Class folders whose samples are (image, label, mask); an image without a file of its mask gets an empty one.

    Args:
        folder: folder of class folders.
        transform: of image and mask.
        root: what the paths of images are taken relative to; ``folder`` or above it.
        masks: the mask of ``root/REL/x.jpg`` is ``masks/REL/x.png``, of the image as it is shown, upright.

    Raises:
        ValueError: no image has a mask, or as `ClassFolders`; later, a mask of another size than its image.
        TypeError: the transform cannot take masks.
    """

    def __init__(self, folder: Path, transform: Prepare, root: Path, masks: Path) -> None:
        super().__init__(folder, transform, masks)
        transform.check_takes_masks()
        self.prepare, self.images_root, self.masks = transform, root, masks
        if not any(mask_file(path, root, masks).is_file() for path, _ in self.samples):
            first = self.samples[0][0]
            raise ValueError(
                f"masks={str(masks)!r} holds the mask of no training image; that of {first!r} would be "
                f"{str(mask_file(first, root, masks))!r}"
            )

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        """Image (3, H, W) float32, label, and mask (H, W) bool."""
        path, label = self.samples[index]
        image: Any = self.loader(path)
        file = mask_file(path, self.images_root, self.masks)
        mask = open_mask(file, image.size) if file.is_file() else torch.zeros(image.height, image.width, dtype=torch.bool)
        prepared, mask = self.prepare.pair(image, mask)
        return prepared, label, mask


def mask_file(image: str | Path, root: Path, masks: Path) -> Path:
    """Where the mask of an image is: ``masks/REL/x.png`` for ``root/REL/x.jpg``."""
    return masks / Path(image).relative_to(root).with_suffix(".png")


def open_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """(H, W) bool: the pixels of a mask that are not 0.

    Args:
        path: a picture of one channel; of others, the brightness counts.
        size: width and height that it must have, those of its image.

    Raises:
        ValueError: another size, or a file that cannot be read.
    """
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture if picture.mode in ("1", "L", "P") else picture.convert("L"))
    except BROKEN as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if values.shape != size[::-1]:
        found = f"{values.shape[1]} x {values.shape[0]}"
        raise ValueError(
            f"the mask {str(path)!r} has {found} pixels, its image, upright, {size[0]} x {size[1]}: save masks in their size"
        )
    return torch.from_numpy(values != 0)
