"""Pictures of explained images: one with its maps, and sheets that say method, layer and colour scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from groupcam_aug.draw import heat_map, overlay, panels, to_uint8

__all__ = ["MOST", "drawn", "percent", "sheet"]

SIZE = 160  # of a picture on a sheet, in pixels
BAR = (128, 12)
MOST = 0.995  # of the values of a fine or signed map keep apart; those above are shown alike


def drawn(pixels: Tensor, saliency: Tensor, style: str, *, fine: bool = False) -> Tensor | Image.Image:
    """One map as a picture; "no map" is written on a paler image where there is none.

    Args:
        pixels: the image, (3, H, W) uint8.
        saliency: (H, W) in [0, 1], all zeros where there is no map; or (3, H, W), signed, of guided Grad-CAM.
        style: "overlay" or "heatmap".
        fine: a map of single pixels, not to be seen if laid over: colours alone, the highest `1 - MOST` alike. Default: False.
    """
    if not bool(saliency.any()):
        return _no_map(pixels)
    if saliency.ndim == 3:  # signed, grey where there is nothing, on its own scale
        return to_uint8(saliency / (2 * _high(saliency)) + 0.5)
    if fine:
        return heat_map(saliency / _high(saliency))
    return heat_map(saliency) if style == "heatmap" else overlay(pixels, saliency)


def sheet(
    rows: Sequence[Sequence[Tensor | Image.Image]],
    captions: Sequence[Sequence[str]],
    heading: Sequence[str],
    signed: bool,
    *,
    coloured: bool | None = None,
    titles: Sequence[str] | None = None,
    size: int = SIZE,
) -> Image.Image:
    """Rows of pictures under a heading and the colour scale.

    Args:
        rows: pictures, an image and its maps in each.
        captions: one per picture.
        heading: lines above them; long ones are broken, empty ones left out.
        signed: there are signed maps, as of guided Grad-CAM, each on a scale of its own.
        coloured: there are maps in colours. Default: None, where none are signed.
        titles: one per column. Default: none.
        size: of a picture, in pixels. Default: 160.
    """
    body = panels(rows, titles, captions=captions, size=size)
    coloured = not signed if coloured is None else coloured
    font, gap = ImageFont.load_default(13), 8
    lines = [part for line in heading if line for part in _broken(line, font, body.width - 2 * gap)]
    step = int(font.getbbox("Ag")[3]) + 4
    page = Image.new("RGB", (body.width, body.height + step * (len(lines) + coloured + signed) + 2 * gap), "white")
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        pen.text((gap, gap + i * step), line, "black", font)
    y = gap + len(lines) * step
    if signed:
        pen.text((gap, y + step * coloured), "grey: 0; each on its own scale", "black", font)
    if coloured:
        bar = heat_map(torch.linspace(0, 1, BAR[0]).expand(BAR[1], -1))
        pen.text((gap, y), "0", "black", font)
        page.paste(to_pil_image(bar), (gap + 14, y + 2))
        pen.text((gap + 20 + BAR[0], y), "1, the highest value of each map", "black", font)
    page.paste(body, (0, page.height - body.height))
    return page


def percent(share: float) -> str:
    """A probability as a label says it."""
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%" if share >= 1e-4 else "<0.01%"


def _high(saliency: Tensor) -> Tensor:
    """The size that all but a few values stay below: a few pixels are far above all others."""
    size = saliency.abs().flatten()
    high = size.kthvalue(max(1, round(MOST * len(size)))).values
    return torch.where(high > 0, high, size.amax()).clamp(min=1e-12)


def _no_map(pixels: Tensor) -> Image.Image:
    picture = to_pil_image((pixels.float() * 0.4 + 153).to(torch.uint8))
    size = max(224, *picture.size)
    picture = picture.resize((size * picture.width // max(picture.size), size * picture.height // max(picture.size)))
    font = ImageFont.load_default(size // 7)
    ImageDraw.Draw(picture).text((picture.width // 2, picture.height // 2), "no map", "black", font, anchor="mm")
    return picture


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that are no wider, broken between words."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
