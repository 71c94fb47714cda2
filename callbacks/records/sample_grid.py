"""The samples of an epoch that are worth a look: least kept, most kept, without a map, and ordinary ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.augment import Augmented
from groupcam_aug.draw import mask_picture, overlay, to_uint8
from groupcam_aug.files import put_file

__all__ = ["COLUMNS", "KINDS", "Gallery", "to_display"]

KINDS = ("smallest", "largest", "no map", "ordinary")  # the order in which a sample that is of two kinds finds its place
COLUMNS = ("image", "map", "kept pixels", "augmented")
PER_KIND = 2
SIZE = 112  # pixels: images are reduced to less than twice this, by a whole factor
FIRST, EVERY = 32, 8  # an epoch's first batches are all looked at, then every eighth: choosing costs as much as a small layer


class Gallery:
    """Candidates of the epoch under way, as small pictures on the device. Nothing here waits for the device before `write`."""

    def __init__(self) -> None:
        self._looks = 0
        self._scores: Tensor | None = None  # (kinds, PER_KIND), -inf where there is none yet
        self._facts: Tensor | None = None  # (kinds, PER_KIND, 4): keep fraction, label or -1, number of the batch, place in it
        self._pictures: Tensor | None = None  # (kinds, PER_KIND, 2 C + 2, h, w)

    def look(self, done: Augmented, images: Tensor, at: Tensor, labels: Tensor | None, fraction: Tensor, step: int) -> None:
        """Keep what is more extreme in this batch than anything before.

        Args:
            done: what was done to the batch.
            images: (N, C, H, W), as they were before.
            at: (n,) int64, which were drawn, on the images' device.
            labels: (n,) int64 of the drawn images, or None.
            fraction: (n,) of pixels kept.
            step: number of the batch.
        """
        self._looks += 1
        if self._looks > FIRST and self._looks % EVERY:
            return
        count = min(PER_KIND, len(at))
        nowhere = torch.full_like(fraction, -torch.inf)
        first = torch.full_like(fraction, -float(self._looks))  # of several without a map the earliest
        with_map = (-fraction, fraction, -(fraction - fraction.mean()).abs())
        scores = [torch.where(done.no_map, nowhere, score) for score in with_map]
        scores.insert(KINDS.index("no map"), torch.where(done.no_map, first, nowhere))
        best, index = torch.stack(scores).topk(count, dim=1)
        chosen = index.flatten()
        whole = at.index_select(0, chosen)
        before, after = (_small(_colours(part.index_select(0, whole))) for part in (images, done.images))
        maps, keep = (_small(part.index_select(0, chosen)[:, None].float()) for part in (done.maps, done.keep))
        pictures = torch.cat([before, maps, keep, after], dim=1).unflatten(0, index.shape)
        label = torch.full_like(fraction, -1.0) if labels is None else labels.to(fraction)
        facts = torch.stack([fraction, label, torch.full_like(fraction, float(step)), at.to(fraction)], dim=1)
        self._merge(best, facts.index_select(0, chosen).unflatten(0, index.shape), pictures)

    def write(self, folder: Path, epoch: int, module: Any = None) -> None:
        """Write `gallery/epoch_00003.png` and `.json`, and delete what is no longer wanted.

        Kept are the first epoch's, the last one's and those of epochs 1, 2, 4, 8 and so on, so the folder stays small.

        Args:
            folder: of the run's records.
            epoch: number of the epoch.
            module: whose `mean` and `std`, if it has them, undo the images' normalisation.
        """
        if self._scores is not None and self._facts is not None and self._pictures is not None:
            rows, pictures = _rows(self._scores.cpu(), self._facts.cpu(), self._pictures.cpu())
            if rows:
                sheet = _sheet(pictures, module)
                name = f"gallery/epoch_{epoch:05d}"
                picture = io.BytesIO()
                sheet.save(picture, "PNG")
                put_file(folder, f"{name}.png", picture.getvalue())
                cell = [sheet.width // len(COLUMNS), sheet.height // len(rows)]
                put_file(folder, f"{name}.json", json.dumps({"epoch": epoch, "cell": cell, "columns": COLUMNS, "rows": rows}))
        _thin_out(folder / "gallery", epoch)

    def _merge(self, scores: Tensor, facts: Tensor, pictures: Tensor) -> None:
        if self._scores is not None and self._facts is not None and self._pictures is not None:
            size = self._pictures.shape[-2:]
            if pictures.shape[-2:] != size:  # batches of several image sizes
                pictures = F.interpolate(pictures.flatten(0, 1), size, mode="bilinear").unflatten(0, scores.shape)
            scores, facts, pictures = (
                torch.cat(pair, dim=1) for pair in ((self._scores, scores), (self._facts, facts), (self._pictures, pictures))
            )
        count = min(PER_KIND, scores.shape[1])
        self._scores, index = scores.topk(count, dim=1)
        kinds = torch.arange(len(KINDS), device=index.device)[:, None]
        self._facts, self._pictures = facts[kinds, index], pictures[kinds, index]


def to_display(images: Tensor, module: Any = None) -> Tensor:
    """Images (N, C, H, W) as uint8 to look at: [0, 1] as they are, normalised ones by the module's `mean` and `std`, and where
    it has none, stretched together from their lowest to their highest value.
    """
    if images.min() >= 0 and images.max() <= 1:
        return to_uint8(images)
    mean, std = (_per_channel(getattr(module, name, None), images.shape[1]) for name in ("mean", "std"))
    if mean is not None and std is not None and bool((std > 0).all()):
        back = images * std[:, None, None] + mean[:, None, None]
        if back.min() > -0.05 and back.max() < 1.05:
            return to_uint8(back)
    low, high = images.min(), images.max()
    return to_uint8((images - low) / (high - low).clamp(min=1e-12))


def _rows(scores: Tensor, facts: Tensor, pictures: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
    rows, chosen, seen = [], [], set()
    for kind, name in enumerate(KINDS):
        for place in range(scores.shape[1]):
            fraction, label, step, at = facts[kind, place].tolist()
            if scores[kind, place].isinf() or (step, at) in seen:
                continue
            seen.add((step, at))
            rows.append({"kind": name, "keep": round(fraction, 4), "label": None if label < 0 else int(label), "step": int(step)})
            chosen.append(pictures[kind, place])
    return rows, torch.stack(chosen) if chosen else pictures[:0, 0]


def _sheet(pictures: Tensor, module: Any) -> Image.Image:
    """The pictures (n, 2 C + 2, h, w) as rows of image, map, mask and augmented image."""
    channels = (pictures.shape[1] - 2) // 2
    before, maps, keep, after = pictures.split((channels, 1, 1, channels), dim=1)
    # Both on one scale, or the blur would look like a change of contrast.
    pixels, augmented = to_display(torch.cat([before, after]), module).chunk(2)
    columns = [pixels, overlay(pixels, maps[:, 0]), mask_picture(keep[:, 0] >= 0.5), augmented]
    cells = torch.stack(columns, dim=1).permute(0, 3, 1, 4, 2)  # rows, height, columns, width, colours
    rows, height, count, width, _ = cells.shape
    return Image.fromarray(cells.reshape(rows * height, count * width, 3).contiguous().numpy())


def _colours(images: Tensor) -> Tensor:
    images = images.as_subclass(Tensor).float()
    return images if images.shape[1] in (1, 3) else images[:, : 3 if images.shape[1] > 3 else 1]


def _small(images: Tensor) -> Tensor:
    factor = max(1, max(images.shape[-2:]) // SIZE)
    return F.avg_pool2d(images, factor) if factor > 1 and min(images.shape[-2:]) >= factor else images


def _per_channel(value: Any, channels: int) -> Tensor | None:
    try:
        value = torch.as_tensor(value, dtype=torch.float32).flatten().cpu()
    except (TypeError, ValueError, RuntimeError):
        return None  # the module means something else by that name
    return value.expand(channels) if len(value) in (1, channels) else None


def _thin_out(folder: Path, epoch: int) -> None:
    numbers = {int(path.stem.removeprefix("epoch_")) for path in folder.glob("epoch_[0-9]*.json")}
    past = {number for number in numbers if number <= epoch}  # later ones are of a run that this one replaces
    wanted = {number for number in past if number in (epoch, min(past)) or number & (number - 1) == 0}
    for number in numbers - wanted:
        for ending in ("json", "png"):
            (folder / f"epoch_{number:05d}.{ending}").unlink(missing_ok=True)
