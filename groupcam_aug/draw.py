"""Pictures: heat maps, overlays and sheets of panels. Tensors or arrays in; PIL images or uint8 tensors out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

__all__ = [
    "film_strip",
    "heat_map",
    "mask_picture",
    "overlay",
    "panels",
    "png",
    "resized",
    "resized_pictures",
    "shown_channels",
    "to_display",
    "to_uint8",
]

LINES, LABEL = 6, 96  # lines of a caption or row label at most; pixels that a row label may take beside small pictures
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Evenly spaced anchors from black over violet and orange to pale yellow: lightness rises, so it reads in grey as well.
_ANCHORS = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)


def to_uint8(images: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Tensor:
    """Images as pixels to look at.

    Args:
        images: (..., C, H, W), C = 1 or 3; floating point in [0, 1], or normalised by `mean` and `std`.
        mean: per channel, as given to the normalisation that is undone. None: the images are in [0, 1] already.
        std: likewise.

    Returns:
        (..., 3, H, W) uint8 on the CPU; values outside [0, 1] are clamped.

    Raises:
        ValueError: another number of channels, or only one of mean and std.
    """
    images = _checked(images)
    if (mean is None) != (std is None):
        raise ValueError("give both mean and std, or neither")
    images = images.detach().as_subclass(Tensor).to("cpu", torch.float32)
    if mean is not None and std is not None:
        shift, scale = (torch.as_tensor(value, dtype=torch.float32).flatten().cpu()[:, None, None] for value in (mean, std))
        images = images * scale + shift
    pixels = (images.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])


def to_display(images: Tensor, mean: Any = None, std: Any = None) -> Tensor:
    """Images of a run, whose normalisation is known by hearsay, as pixels to look at.

    Images in [0, 1] are shown as they are. Others are shown as before their normalisation, if undoing it leads back to [0, 1]
    (5 % beyond are cut off); failing that they are stretched together from their lowest to their highest value.

    Args:
        images: (N, C, H, W) floating point; of more than three channels the first three are shown, of two the first.
        mean: of the normalisation, per channel shown or one for all. What is no such thing counts as not known.
        std: likewise.

    Returns:
        (N, 3, H, W) uint8 on the CPU.
    """
    images = shown_channels(images.detach().as_subclass(Tensor)).to("cpu", torch.float32).nan_to_num()
    low, high = images.min(), images.max()
    if low >= 0 and high <= 1:
        return to_uint8(images)
    shift, scale = (_per_channel(value, images.shape[1]) for value in (mean, std))
    if shift is not None and scale is not None and bool((scale > 0).all()):
        original = images * scale[:, None, None] + shift[:, None, None]
        if original.min() > -0.05 and original.max() < 1.05:
            return to_uint8(original)
    return to_uint8((images - low) / (high - low).clamp(min=1e-12))


def shown_channels(images: Tensor) -> Tensor:
    """The channels of (N, C, H, W) images that pictures show: one or three of them."""
    channels = images.shape[1]
    return images[:, : 3 if channels >= 3 else 1]


def heat_map(maps: Tensor, scale: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Maps as colours, black over red to pale yellow.

    Args:
        maps: (..., H, W).
        scale: values shown as the lowest and the highest colour, the same for every map (nothing is rescaled per picture).

    Returns:
        (..., 3, H, W) uint8 on the CPU.
    """
    low, high = scale
    if not high > low:
        raise ValueError(f"scale must be (low, high) with low < high, got {scale}")
    level = ((_tensor(maps).detach().to("cpu", torch.float32).nan_to_num() - low) / (high - low)).clamp(0, 1)
    return _colours()[(level * 255).round().long()].movedim(-1, -3)


def overlay(image: Tensor, saliency: Tensor, *, opacity: float = 0.6, scale: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Heat map over an image, more opaque where the map is higher.

    Args:
        image: (..., C, H, W) in [0, 1] or uint8 (see `to_uint8` for normalised ones).
        saliency: (..., H, W), resized if its size differs.
        opacity: of the highest value, 0 to 1.
        scale: see `heat_map`.

    Returns:
        (..., 3, H, W) uint8 on the CPU.
    """
    pixels = _pixels(image)
    maps = _tensor(saliency).detach().to("cpu", torch.float32)
    if maps.shape[-2:] != pixels.shape[-2:]:
        maps = F.interpolate(maps.reshape(1, -1, *maps.shape[-2:]), pixels.shape[-2:], mode="bilinear").reshape(
            *maps.shape[:-2], *pixels.shape[-2:]
        )
    weight = opacity * ((maps - scale[0]) / (scale[1] - scale[0])).nan_to_num().clamp(0, 1).sqrt()[..., None, :, :]
    return torch.lerp(pixels.float(), heat_map(maps, scale).float(), weight).round().to(torch.uint8)


def mask_picture(keep: Tensor) -> Tensor:
    """(..., H, W) bool -> (..., 3, H, W) uint8: kept pixels white, the others black."""
    return (_tensor(keep).detach().cpu().to(torch.uint8) * 255)[..., None, :, :].expand(*keep.shape[:-2], 3, *keep.shape[-2:])


def panels(
    rows: Sequence[Sequence[Tensor | Image.Image | None]],
    titles: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    *,
    size: int = 160,
    captions: Sequence[Sequence[str | None]] | None = None,
) -> Image.Image:
    """A sheet of pictures in rows and columns, with column titles, row labels and a caption under each picture.

    Captions and row labels take as many lines as they need, up to `LINES`; titles are cut where they are too long.

    Args:
        rows: pictures, (C, H, W) tensors or arrays (uint8, or floating point in [0, 1]) or PIL images; None leaves a gap.
        titles: one per column.
        labels: one per row.
        size: longer side of a picture in pixels.
        captions: one per picture, in the shape of `rows`.

    Returns:
        An RGB image.

    Raises:
        ValueError: no picture at all.
    """
    pictures = [[None if cell is None else _picture(cell, size) for cell in row] for row in rows]
    columns = max((len(row) for row in pictures), default=0)
    if not columns:
        raise ValueError("panels needs at least one picture")
    font, gap = ImageFont.load_default(max(11, size // 12)), max(4, size // 20)
    line = int(font.getbbox("Ag")[3]) + 4
    named = [_wrapped(label, font, max(size, LABEL)) for label in labels or ()]
    left = gap + (max(int(font.getlength(words)) for label in named for words in label) + gap if named else 0)
    top = gap + (line if titles else 0)
    said = [[_wrapped(caption or "", font, size) for caption in row] for row in captions or [[]] * len(rows)]
    below = [gap + line * max(map(len, row), default=0) for row in said]
    heights = [
        max((cell.height for cell in row if cell is not None), default=size) + space
        for row, space in zip(pictures, below, strict=True)
    ]
    sheet = Image.new("RGB", (left + columns * (size + gap), top + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles or ()):
        pen.text((left + column * (size + gap), gap // 2), _fitted(title, font, size), "black", font)
    y = top
    for i, row in enumerate(pictures):
        if named:
            middle = y + (heights[i] - below[i]) // 2
            pen.multiline_text((gap, middle - line * len(named[i]) // 2), "\n".join(named[i]), "black", font)
        for column, cell in enumerate(row):
            x = left + column * (size + gap)
            if cell is not None:
                pen.rectangle((x - 1, y - 1, x + cell.width, y + cell.height), outline="#cccccc")  # white ones end somewhere
                sheet.paste(cell, (x, y))
            if column < len(said[i]):
                pen.multiline_text((x, y + heights[i] - below[i] + 2), "\n".join(said[i][column]), "black", font)
        y += heights[i]
    return sheet


def film_strip(
    images: Tensor,
    maps: Tensor,
    titles: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    size: int = 96,
) -> Image.Image:
    """Maps of the same images over time: a row per image, a column per moment, one fixed scale throughout.

    Args:
        images: (P, C, H, W) in [0, 1] or uint8, shown in the first column.
        maps: (T, P, h, w).
        titles: one per moment.
        labels: one per image.
        scale: see `heat_map`; the same for every frame, so that nothing flickers.
        size: longer side of a frame in pixels.
    """
    rows = [[image, *(overlay(image, moment[i], scale=scale) for moment in maps)] for i, image in enumerate(images)]
    return panels(rows, None if titles is None else ["", *titles], labels, size=size)


def resized(picture: Image.Image, size: int) -> Image.Image:
    """A picture with `size` pixels along its longer side."""
    factor = size / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    # Small images are enlarged pixel by pixel: smoothing would show detail that the network never saw.
    return picture.resize((width, height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def resized_pictures(pictures: Tensor, size: int) -> Tensor:
    """Pictures (N, 3, H, W) uint8, each `resized`: (N, 3, h, w) uint8."""
    return torch.stack([pil_to_tensor(resized(to_pil_image(picture), size)) for picture in pictures])


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # a third of the time for a tenth more bytes
    return buffer.getvalue()


def _pixels(image: Tensor) -> Tensor:
    """Pixels of an image in [0, 1], or those that it consists of already: uint8 on the CPU."""
    image = _checked(image)
    return image.cpu() if image.dtype == torch.uint8 else to_uint8(image)


def _checked(images: Tensor) -> Tensor:
    """Images as a tensor, if they have the channels of a picture."""
    images = _tensor(images)
    if images.ndim < 3 or images.shape[-3] not in (1, 3):
        last = images.ndim > 2 and images.shape[-1] in (1, 3, 4)
        raise ValueError(
            f"pictures (..., C, H, W) need 1 or 3 channels, got {images.shape[-3] if images.ndim > 2 else 'none'} in the shape "
            f"{tuple(images.shape)}; "
            + (
                "bring the channels to the front, by image.permute(2, 0, 1)"
                if last
                else "drop an alpha channel first, by image[:3] or PIL's convert('RGB')"
            )
        )
    return images


def _tensor(value: Any) -> Tensor:
    """A tensor, or an array as one."""
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__array__") or isinstance(value, Image.Image):
        raise TypeError(f"expected a tensor or an array, got {type(value).__name__}")
    return torch.as_tensor(value)


def _picture(cell: Tensor | Image.Image, size: int) -> Image.Image:
    picture = cell if isinstance(cell, Image.Image) else to_pil_image(_pixels(cell))
    return resized(picture.convert("RGB"), size)


def _per_channel(value: Any, channels: int) -> Tensor | None:
    try:
        value = torch.as_tensor(value, dtype=torch.float32).flatten().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None  # something else by that name
    return value.expand(channels) if len(value) in (1, channels) else None


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words where that can be; what passes `LINES` is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], _fitted(" ".join(lines[LINES - 1 :]), font, width)]


@lru_cache(maxsize=1)
def _colours() -> Tensor:
    anchors = torch.tensor(_ANCHORS, dtype=torch.float32).t()[None]
    return F.interpolate(anchors, 256, mode="linear", align_corners=True)[0].t().round().to(torch.uint8)
