"""Files of images: which there are, and how one becomes 8-bit RGB."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from groupcam_aug.printable import printable

__all__ = ["BROKEN", "as_rgb", "find_images", "is_image", "open_rgb", "shown"]

# What Pillow raises for damaged files; the last two for some PNG, and where a size has become absurd.
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def find_images(paths: Sequence[str], out: Path | None = None) -> list[Path]:
    """Image files among `paths`: files as they are, folders searched through but for hidden parts and for `out`, in order.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without images.
        ValueError: `out` is one of the folders.
    """
    found: list[Path] = []
    written = None if out is None else out.resolve()  # pictures of an earlier call are none of the user's
    for path in map(Path, paths):
        if path.is_dir():
            if path.resolve() == written:
                raise ValueError(f"{str(path)!r} is the folder to write to: leave it out, or give another by --out")
            files = (file for file in path.rglob("*") if is_image(file, path))
            skip = written if written is not None and path.resolve() in written.parents else None
            inside = sorted(file for file in files if skip is None or skip not in file.resolve().parents)
            if not inside:
                raise FileNotFoundError(f"{str(path)!r} holds no image ({', '.join(IMG_EXTENSIONS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{str(path)!r} is not there")
    return found


def shown(path: Path) -> str:
    """A path for people, in one line: of a name that is not UTF-8 what can be shown, control characters written out."""
    return printable(os.fsencode(path).decode(errors="replace")).replace("\n", "\\n")


def is_image(path: str | Path, root: Path) -> bool:
    """Whether a file has the suffix of an image and is not hidden.

    Hidden is what has a part below `root` that begins with a dot, as copies that notebooks and file managers keep do.
    """
    path = Path(path)
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.name.lower().endswith(IMG_EXTENSIONS) and not hidden


def open_rgb(path: str | Path) -> Image.Image:
    """The picture in a file, in 8-bit RGB; raises what `BROKEN` names for one that cannot be read."""
    with Image.open(path) as picture:
        return as_rgb(picture)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture, as opened, in 8-bit RGB. 16 bits a pixel are scaled, which Pillow would clip; transparency is dropped.

    Raises:
        ValueError: numbers whose range is not known (floating point, 32 bits).
    """
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):  # those hold 16 bits at most
            raise ValueError(
                f"pixels of mode {picture.mode!r} ({values.min():g} to {values.max():g}) have no known range; "
                "save the image with 8 or 16 bits a channel"
            )
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    return picture.convert("RGB")
