"""The samples of an epoch that are worth a look: fewest and most pixels kept, without a map, and typical ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks.glue.attributes import attribute
from groupcam_aug.callbacks.glue.class_names import class_name
from groupcam_aug.draw import mask_picture, overlay, panels, png, shown_channels, to_display
from groupcam_aug.files import put_file

__all__ = ["COLUMNS", "KINDS", "SampleGrid", "Samples", "is_kept"]

KINDS = ("smallest", "largest", "no map", "ordinary")  # the order in which a sample that is of two kinds finds its place
COLUMNS = ("image", "map", "kept pixels", "augmented")
PER_KIND = 2
SIZE = 112  # pixels: images are reduced to less than twice this, by a whole factor
FIRST, EVERY = 32, 8  # all of an epoch's first batches are searched, then every eighth: choosing costs as much as a small layer


class Samples(NamedTuple):
    """The chosen samples of an epoch."""

    rows: list[dict[str, Any]]  # `kind`, `keep` (share of pixels kept), `label` (or None) and `step` of each
    cells: Tensor  # (rows, COLUMNS, 3, h, w) uint8

    def panel(self, names: list[str] | None) -> Image.Image:
        """The samples under each other, each with its class and the share that is kept."""
        labels = []
        for row in self.rows:
            name = "" if row["label"] is None else f"{class_name(names, row['label'])}, "
            labels.append(f"{name}no map" if row["kind"] == "no map" else f"{name}{row['keep']:.0%} kept")
        return panels([list(cells) for cells in self.cells], COLUMNS, labels, size=SIZE)


class SampleGrid:
    """Candidates of the epoch under way, as small pictures on the device. Nothing here waits for the device before `write`."""

    def __init__(self) -> None:
        self._batches = 0
        self._scores: Tensor | None = None  # (kinds, PER_KIND), -inf where there is none yet
        self._facts: Tensor | None = None  # (kinds, PER_KIND, 4): keep fraction, label or -1, number of the batch, place in it
        self._pictures: Tensor | None = None  # (kinds, PER_KIND, 2 C + 2, h, w)

    def add(self, done: Augmented, images: Tensor, index: Tensor, labels: Tensor | None, fraction: Tensor, step: int) -> None:
        """Keep what is more extreme in this batch than anything before.

        Args:
            done: what was done to the batch.
            images: (N, C, H, W), as they were before.
            index: (n,) int64, which were drawn, on the images' device.
            labels: (n,) int64 of the drawn images, or None.
            fraction: (n,) of pixels kept.
            step: number of the batch.
        """
        self._batches += 1
        if self._batches > FIRST and self._batches % EVERY:
            return
        count = min(PER_KIND, len(index))
        nowhere = torch.full_like(fraction, -torch.inf)
        first = torch.full_like(fraction, -float(self._batches))  # of several without a map the earliest
        with_map = (-fraction, fraction, -(fraction - fraction.mean()).abs())
        scores = [torch.where(done.no_map, nowhere, score) for score in with_map]
        scores.insert(KINDS.index("no map"), torch.where(done.no_map, first, nowhere))
        best, places = torch.stack(scores).topk(count, dim=1)
        chosen = places.flatten()
        in_batch = index.index_select(0, chosen)
        images = torch.cat([part.as_subclass(Tensor).index_select(0, in_batch) for part in (images, done.images)])
        before, after = _small(shown_channels(images).float()).chunk(2)
        maps, keep = (_small(part.index_select(0, chosen)[:, None].float()) for part in (done.maps, done.keep))
        pictures = torch.cat([before, maps, keep, after], dim=1).unflatten(0, places.shape)
        label = torch.full_like(fraction, -1.0) if labels is None else labels.to(fraction)
        facts = torch.stack([fraction, label, torch.full_like(fraction, float(step)), index.to(fraction)], dim=1)
        self._merge(best, facts.index_select(0, chosen).unflatten(0, places.shape), pictures)

    def write(self, folder: Path, epoch: int, module: Any = None, run: str | None = None) -> Samples | None:
        """Write `gallery/epoch_00003.png` and `.json`, and delete what is no longer wanted.

        Kept are the first epoch's, the last one's and those of epochs 1, 2, 4, 8 and so on, so the folder stays small.

        Args:
            folder: of the run's records.
            epoch: number of the epoch.
            module: whose `mean` and `std`, if it has them, undo the images' normalisation.
            run: id of the run.

        Returns:
            The samples; None if no image was drawn.
        """
        samples = None
        if self._scores is not None and self._facts is not None and self._pictures is not None:
            rows, pictures = _rows(self._scores.cpu(), self._facts.cpu(), self._pictures.cpu())
            if rows:
                samples = Samples(rows, _cells(pictures, attribute(module, "mean"), attribute(module, "std")))
                sheet = _sheet(samples.cells)
                name = f"gallery/epoch_{epoch:05d}"
                put_file(folder, f"{name}.png", png(sheet))
                cell = [sheet.width // len(COLUMNS), sheet.height // len(rows)]
                facts = {"run": run, "epoch": epoch, "cell": cell, "columns": COLUMNS, "rows": rows}
                put_file(folder, f"{name}.json", json.dumps(facts))
        _thin_out(folder / "gallery", epoch)
        return samples

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


def _rows(scores: Tensor, facts: Tensor, pictures: Tensor) -> tuple[list[dict[str, Any]], Tensor]:
    rows, chosen, samples = [], [], set()
    for kind, name in enumerate(KINDS):
        for place in range(scores.shape[1]):
            fraction, label, step, index = facts[kind, place].tolist()
            if scores[kind, place].isinf() or (step, index) in samples:
                continue
            samples.add((step, index))
            rows.append({"kind": name, "keep": round(fraction, 4), "label": None if label < 0 else int(label), "step": int(step)})
            chosen.append(pictures[kind, place])
    return rows, torch.stack(chosen) if chosen else pictures[:0, 0]


def is_kept(epoch: int) -> bool:
    """Whether an epoch's samples are kept, be it the last or not: 0, 1, 2, 4, 8 and so on."""
    return epoch & (epoch - 1) == 0


def _cells(pictures: Tensor, mean: Any, std: Any) -> Tensor:
    """The pictures (n, 2 C + 2, h, w) as image, map, mask and augmented image: (n, 4, 3, h, w) uint8."""
    channels = (pictures.shape[1] - 2) // 2
    before, maps, keep, after = pictures.split((channels, 1, 1, channels), dim=1)
    # Both on one scale, or the blur would look like a change of contrast.
    pixels, augmented = to_display(torch.cat([before, after]), mean, std).chunk(2)
    return torch.stack([pixels, overlay(pixels, maps[:, 0]), mask_picture(keep[:, 0] >= 0.5), augmented], dim=1)


def _sheet(cells: Tensor) -> Image.Image:
    """The cells side by side and under each other, without gaps."""
    cells = cells.permute(0, 3, 1, 4, 2)  # rows, height, columns, width, colours
    rows, height, count, width, _ = cells.shape
    return Image.fromarray(cells.reshape(rows * height, count * width, 3).contiguous().numpy())


def _small(images: Tensor) -> Tensor:
    factor = max(1, max(images.shape[-2:]) // SIZE)
    return F.avg_pool2d(images, factor) if factor > 1 and min(images.shape[-2:]) >= factor else images


def _thin_out(folder: Path, epoch: int) -> None:
    numbers = {int(path.stem.removeprefix("epoch_")) for path in folder.glob("epoch_[0-9]*.json")}
    past = {number for number in numbers if number <= epoch}  # later ones are of a run that this one replaces
    wanted = {number for number in past if number in (epoch, min(past)) or is_kept(number)}
    for number in numbers - wanted:
        for ending in ("json", "png"):
            (folder / f"epoch_{number:05d}.{ending}").unlink(missing_ok=True)
