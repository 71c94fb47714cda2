"""What the saliency monitor shows of its probes: facts and pictures in files, pictures in loggers. Rank zero only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from groupcam_aug.callbacks.monitoring.film_strip import SIZE, Film, column, png, send, thumbnails
from groupcam_aug.callbacks.monitoring.map_stats import Reading, alive
from groupcam_aug.draw import overlay, panels
from groupcam_aug.files import put_file

__all__ = ["Exhibit"]

ABREAST = 3  # probes in a row of a panel


class Exhibit:
    """Pictures of a few probes.

    Args:
        folder: to write into.
        name: of the files ("monitor") and of the folder of pictures in it.
        images: (P, C, H, W), all probes as the network takes them.
        labels: (P,) or (P, classes), what their maps explain.
        shown: which of them are shown.
        class_names: one per class, or None.
        mean: of the normalisation to undo, or None. Not used if there are not as many as channels.
        std: likewise.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        images: Tensor,
        labels: Tensor,
        shown: list[int],
        class_names: Sequence[Any] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        fits = mean is not None and std is not None and len(mean) == len(std) == images.shape[1]
        self.folder, self.name, self.shown = folder, name, shown
        self.labels = _indices(labels)
        self.class_names = None if class_names is None else [str(each) for each in class_names]
        self.pictures = thumbnails(images[shown], mean if fits else None, std if fits else None)

    def open(self, facts: dict[str, Any]) -> None:
        """Write down what is watched, and what the probes look like."""
        put_file(self.folder, f"{self.name}/probes.png", png(column(self.pictures)))
        facts = {**facts, "labels": self.labels, "class_names": self.class_names, "shown": self.shown}
        put_file(self.folder, f"{self.name}.json", json.dumps(facts, indent=1) + "\n")

    def add(self, epoch: int, now: Reading, film: Film) -> Image.Image:
        """Write the maps of an epoch, and the film strip up to it, which is returned."""
        put_file(self.folder, f"{self.name}/epoch_{epoch:05d}.png", png(column(self.pictures, now.maps[self.shown])))
        strip = film.strip(self.pictures)
        put_file(self.folder, f"{self.name}/film_strip.png", png(strip))
        return strip

    def upload(self, trainer: Any, prefix: str, now: Reading, strip: Image.Image, grid: int) -> None:
        """Show the maps and the film strip in every logger that takes pictures."""
        if trainer.loggers:
            send(trainer, f"{prefix}maps", self.panel(now, grid))
            send(trainer, f"{prefix}film_strip", strip)

    def panel(self, now: Reading, grid: int) -> Image.Image:
        """The shown probes beside their maps, with label, score, and what the network took them for."""
        living = alive(now, grid)
        cells: list[Tensor] = []
        captions: list[str] = []
        for picture, i in zip(self.pictures, self.shown, strict=True):
            cells += [picture, overlay(picture, now.maps[i].float())]
            taken = "" if now.right[i] else f", taken for {self._call(int(now.chosen[i]))}"
            captions += [self._call(self.labels[i]), f"{'' if living[i] else 'no map, '}p {now.score[i]:.2f}{taken}"]
        starts = range(0, len(cells), 2 * ABREAST)
        sheet, told = ([cells[i : i + 2 * ABREAST] for i in starts], [captions[i : i + 2 * ABREAST] for i in starts])
        return panels(sheet, captions=told, size=SIZE)

    def _call(self, label: int) -> str:
        names = self.class_names
        return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"


def _indices(labels: Tensor) -> list[int]:
    """Class indices of labels or weights, for those who read them."""
    if labels.ndim == 2:
        return (labels.argmax(dim=1) if labels.shape[1] > 1 else labels[:, 0] > 0.5).long().tolist()
    return labels.long().tolist()
