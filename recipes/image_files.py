"""Files of images: which there are, and how one becomes 8-bit RGB."""

from __future__ import annotations

import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from groupcam_aug.printable import printable

__all__ = [
    "BROKEN",
    "SUFFIXES",
    "as_rgb",
    "find_images",
    "images_in",
    "is_image",
    "open_rgb",
    "passed_over",
    "shown",
    "upright_size",
]

# What Pillow raises for damaged files; the last two for some PNG, and where a size has become absurd.
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

_LINK = "link to a folder that is there already"
SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".jpe")  # the last two are JPEG
OTHER_PICTURES = (".heic", ".heif", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", _LINK)
LONGEST = 100  # times the shorter side: beyond that, resizing by the shorter side fills the memory

# Orientation in EXIF -> how the picture is turned upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find_images(paths: Sequence[str], out: Path | None = None) -> list[Path]:
    """Image files among `paths`, each once: files as they are, folders searched through but for hidden parts and for `out`.

    Pictures of other kinds in a folder are counted in a warning.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without images.
        ValueError: `out` is one of the folders.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    written = None if out is None else out.resolve()  # pictures of an earlier call are none of the user's
    for path in map(Path, paths):
        if path.is_dir():
            if path.resolve() == written:
                raise ValueError(f"{str(path)!r} is the folder to write to: leave it out, or give another by --out")
            inside, passed = images_in(path, written)
            if not inside:
                told = f"; passed over: {passed_over(passed)}" if passed else ""
                raise FileNotFoundError(f"{str(path)!r} holds no image ({', '.join(SUFFIXES)}){told}")
            found += inside
            pictures = {*Image.registered_extensions(), *OTHER_PICTURES}
            others += Counter({kind: count for kind, count in passed.items() if kind in pictures})
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{str(path)!r} is not there")
    if others:  # text, tables and the like beside photographs are no surprise
        warnings.warn(f"passed over: {passed_over(others)} (read: {', '.join(SUFFIXES)})", stacklevel=2)
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - a link has a name of its own
    return list(once.values())


def images_in(folder: Path, out: Path | None = None) -> tuple[list[Path], Counter[str]]:
    """The images in a folder and below, sorted, and what else there is, counted by suffix.

    Links to folders are followed, but not into a folder that is gone through anyway: a loop of links adds nothing.

    Args:
        folder: where to look; hidden parts below it are not looked at.
        out: a folder below it, resolved, that is left out. Default: None.

    Raises:
        OSError: a folder that cannot be read.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in _files(folder, {folder.resolve()}, others, out):
        if is_image(path, folder):
            images.append(path)
        else:
            others[path.suffix.lower() or "without a suffix"] += 1
    return sorted(images), others


def passed_over(others: Counter[str]) -> str:
    """What `images_in` counted, in words: the most frequent first."""
    return ", ".join(f"{count} {kind}" for kind, count in others.most_common())


def shown(path: Path) -> str:
    """A path for people, in one line: of a name that is not UTF-8 what can be shown, control characters written out."""
    return printable(os.fsencode(path).decode(errors="replace")).replace("\n", "\\n")


def is_image(path: str | Path, root: Path) -> bool:
    """Whether a file has the suffix of an image and is not hidden.

    Hidden is what has a part below `root` that begins with a dot, as copies that notebooks and file managers keep do.
    """
    path = Path(path)
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.name.lower().endswith(SUFFIXES) and not hidden


def open_rgb(path: str | Path) -> Image.Image:
    """The picture in a file, upright as its EXIF says, in 8-bit RGB.

    Raises:
        ValueError: one side is more than `LONGEST` times the other, or as `as_rgb`.
        Exception: what `BROKEN` names for a file that cannot be read.
    """
    with Image.open(path) as picture:
        if max(picture.size) > LONGEST * min(picture.size):
            raise ValueError(
                f"{picture.size[0]} x {picture.size[1]} pixels, one side more than {LONGEST} times the other: crop it, or take "
                "it away"
            )
        return as_rgb(picture)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture, as opened, upright and in 8-bit RGB. 16 bits a pixel are scaled, which Pillow would clip; no transparency.

    Raises:
        ValueError: numbers whose range is not known (floating point, 32 bits).
    """
    picture.load()  # turns a TIFF upright by itself
    how = _turn(picture)
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):  # those hold 16 bits at most
            raise ValueError(
                f"pixels of mode {picture.mode!r} ({values.min():g} to {values.max():g}) have no known range; "
                "save the image with 8 or 16 bits a channel"
            )
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    picture = picture.convert("RGB")
    return picture if how is None else picture.transpose(how)


def upright_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the picture that `open_rgb` gives, from the file's head alone; raises as it does."""
    with Image.open(path) as picture:
        if picture.format == "TIFF":
            picture.load()  # turns it upright; some versions give the new size before, some after
        lying = _turn(picture) in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
        return picture.size if lying else picture.size[::-1]


def _files(folder: Path, entered: set[Path], others: Counter[str], out: Path | None) -> Iterator[Path]:
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield path
        elif out is not None and path.resolve() == out:
            continue
        elif not entry.is_symlink():
            yield from _files(path, entered, others, out)
        else:
            real = path.resolve()
            if any(real == one or real in one.parents or one in real.parents for one in entered):
                others[_LINK] += 1
                continue
            entered.add(real)
            yield from _files(path, entered, others, out)


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """How a picture is turned upright, by its EXIF; None where it is, or where EXIF is damaged and says nothing."""
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, struct.error, TypeError, ValueError, KeyError, EOFError):  # damaged: it has none
        return None
