"""What the saliency monitor shows of its probes: facts and pictures in files, pictures in loggers. Rank zero only."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from groupcam_aug.callbacks.glue.attributes import class_names as named
from groupcam_aug.callbacks.glue.class_names import class_name
from groupcam_aug.callbacks.glue.logger_pictures import send_picture
from groupcam_aug.callbacks.monitoring.film_strip import SIZE, FilmStrip, column, thumbnails
from groupcam_aug.callbacks.monitoring.map_stats import Reading, alive
from groupcam_aug.draw import overlay, panels, png
from groupcam_aug.files import put_file
from groupcam_aug.targets import class_labels

__all__ = ["Snapshots"]

ABREAST = 3  # probes in a row of a panel
ERRORS = 6  # probes taken for another class of which pictures are written


class Snapshots:
    """Pictures of a few probes.

    Args:
        folder: to write into.
        name: of the files ("monitor") and of the folder of pictures in it.
        images: (P, C, H, W), all probes as the network takes them.
        labels: (P,) or (P, classes), what their maps explain.
        shown: which of them are shown.
        class_names: one per class; anything else counts as not known.
        mean: of the normalisation to undo, or None; see `to_display`, which takes it so as well.
        std: likewise.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        images: Tensor,
        labels: Tensor,
        shown: list[int],
        class_names: Any,
        mean: Any,
        std: Any,
    ) -> None:
        self.folder, self.name, self.shown = folder, name, shown
        classes, _ = class_labels(labels, len(images))
        self.labels: list[int] = [] if classes is None else classes.tolist()
        self.class_names = named(class_names)
        self._images, self._normalisation = images, (mean, std)

    @cached_property
    def pictures(self) -> Tensor:
        """(S, 3, h, w) uint8, what the shown probes look like."""
        return thumbnails(self._images[self.shown], *self._normalisation)

    def open(self, facts: dict[str, Any]) -> None:
        """Write down what is watched."""
        facts = {**facts, "labels": self.labels, "class_names": self.class_names, "shown": self.shown}
        put_file(self.folder, f"{self.name}.json", json.dumps(facts, indent=1) + "\n")

    def add(self, epoch: int, now: Reading, film_strip: FilmStrip) -> None:
        """Write the maps of an epoch and the film strip up to it, and delete the pictures of moments that are not in the film.

        Those of earlier maps than the film's first stay: they are of a run with other probes, which is over.
        """
        put_file(self.folder, f"{self.name}/epoch_{epoch:05d}.png", png(column(self.pictures, now.maps[self.shown])))
        put_file(self.folder, f"{self.name}/film_strip.png", png(film_strip.draw(self.pictures, self._row_names())))
        kept = {moment for moment, _ in film_strip.frames.values()}
        for path in (self.folder / self.name).glob("epoch_[0-9]*.png"):
            number = int(path.stem.removeprefix("epoch_"))
            if min(kept) < number < epoch and number not in kept:
                path.unlink(missing_ok=True)

    def add_errors(self, facts: dict[str, Any], now: Reading) -> None:
        """Write the probes that are taken for another class than their own, the most confident first: picture and map.

        Args:
            facts: `run` and `epoch`.
            now: the reading.
        """
        wrong = [i for i, label in enumerate(self.labels) if label != int(now.chosen[i])]
        rows = sorted(wrong, key=lambda i: -float(now.confidence[i]))[:ERRORS]
        cell = [0, 0]
        if rows:
            pictures = thumbnails(self._images[rows], *self._normalisation)
            sheet = torch.cat([pictures, overlay(pictures, now.maps[rows].float())], dim=-1)
            put_file(self.folder, f"{self.name}/errors.png", png(column(sheet)))
            cell = [pictures.shape[-1], pictures.shape[-2]]
        has_map = alive(now, max(now.maps.shape[1:]))
        errors = [
            {
                "label": self.labels[i],
                "chosen": int(now.chosen[i]),
                "confidence": _finite(now.confidence[i]),
                "score": _finite(now.score[i]),
                "has_map": has_map[i],
            }
            for i in rows
        ]
        facts = {**facts, "cell": cell, "wrong": len(wrong), "rows": errors}
        put_file(self.folder, f"{self.name}/errors.json", json.dumps(facts) + "\n")

    def show_probes(self) -> None:
        """Write what the probes look like."""
        put_file(self.folder, f"{self.name}/probes.png", png(column(self.pictures)))

    def upload(self, trainer: Any, prefix: str, now: Reading, film_strip: FilmStrip, grid: int) -> None:
        """Show the maps and the film strip in every logger that takes pictures."""
        if trainer.loggers:
            send_picture(trainer, f"{prefix}maps", self.panel(now, grid))
            send_picture(trainer, f"{prefix}film_strip", film_strip.draw(self.pictures, self._row_names()))

    def panel(self, now: Reading, grid: int) -> Image.Image:
        """The shown probes beside their maps, with label, score, and what the network took them for."""
        has_map = alive(now, grid)
        cells: list[Tensor] = []
        captions: list[str] = []
        overlays = overlay(self.pictures, now.maps[self.shown].float())
        for picture, explained, i in zip(self.pictures, overlays, self.shown, strict=True):
            cells += [picture, explained]
            predicted = "" if now.right[i] else f", taken for {self._class_name(int(now.chosen[i]))}"
            captions += [
                self._class_name(self.labels[i]),
                f"{'' if has_map[i] else 'no map, '}p {now.score[i]:.2f}{predicted}",
            ]
        rows = [slice(start, start + 2 * ABREAST) for start in range(0, len(cells), 2 * ABREAST)]
        return panels([cells[row] for row in rows], captions=[captions[row] for row in rows], size=SIZE)

    def _class_name(self, label: int) -> str:
        return class_name(self.class_names, label)

    def _row_names(self) -> list[str]:
        return [self._class_name(self.labels[i]) for i in self.shown] if self.labels else []


def _finite(value: Tensor) -> float | None:
    """For JSON, which knows no NaN."""
    return round(float(value), 4) if bool(value.isfinite()) else None
