"""What an epoch of augmentation did: counts kept on the device, one line and a few pictures on disk when the epoch ends."""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks.records.folder import open_folder, run_id
from groupcam_aug.callbacks.records.sample_grid import SampleGrid, Samples
from groupcam_aug.callbacks.records.step_timer import StepTimer
from groupcam_aug.files import add_line, put_file
from groupcam_aug.targets import class_labels

__all__ = ["BINS", "AugmentationStats", "open_stats"]

BINS = 20  # of the histogram of keep fractions
CLASSES = 32_768  # counted one by one; how many there are could only be learned by waiting for the device
STEPS = 1_000  # the last so many steps of an epoch give the medians


def open_stats(trainer: Any) -> AugmentationStats | None:
    """Counts of this fit; None on other ranks, and where nothing is to be recorded (see `open_folder`).

    Only rank zero's share of the images is counted: no collective is called for it.
    """
    folder = open_folder(trainer)
    return None if folder is None else AugmentationStats(folder)


class AugmentationStats:
    """Counts of the epoch under way. Nothing here waits for the device before `write`, and memory does not grow.

    Args:
        folder: where `augmentation.jsonl`, `augmentation.json` and `gallery/` are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.steps = self.due_images = self.drawn = self.augmented_steps = 0
        self._sums: Tensor | None = None  # (2 + BINS,): images without a map, sum of the others' keep fractions, their histogram
        self._classes: Tensor | None = None  # (classes + 1, 2): drawn, of those without a map; last row: of other labels
        self._unlabelled: Tensor | None = None  # (2,): of rows without any label, drawn, of those without a map
        self._kept: Tensor | None = None  # (4,) int64: pixels of objects kept, of objects, of backgrounds kept, of backgrounds
        self._steps: deque[tuple[float, float | None]] = deque(maxlen=STEPS)
        self._samples = SampleGrid()

    def add_step(self, due_images: int) -> None:
        """A training step begins, with so many images that might have been drawn (0: the step was not due)."""
        self.steps += 1
        self.due_images += due_images

    def add(self, done: Augmented, images: Tensor, targets: Any, step: int, kept: Tensor | None = None) -> None:
        """What was done to a batch.

        Args:
            done: of the batch.
            images: (N, C, H, W), as they were before.
            targets: of the whole batch, in any form that `GroupCAM` takes.
            step: number of the batch, for the captions.
            kept: (4,) int64, counts of `object_masks.count_kept`. Default: None, the batch has no object masks.
        """
        if not len(done.drawn):
            return
        with torch.no_grad():
            self.augmented_steps += 1
            self.drawn += len(done.drawn)
            fraction = done.keep.flatten(1).sum(dim=1) / done.keep[0].numel()
            missing = done.no_map.float()
            if self._sums is None:
                self._sums = torch.zeros(2 + BINS, device=fraction.device)
            self._sums[0] += missing.sum()
            self._sums[1] += (fraction * (1 - missing)).sum()
            bins = (fraction * BINS).long().clamp(max=BINS - 1)
            self._sums.index_add_(0, bins + 2, 1 - missing)  # not histc or bincount: those wait, or are refused as undetermined
            if kept is not None:
                self._kept = kept if self._kept is None else self._kept + kept
            index = done.drawn.to(fraction.device, non_blocking=True)
            labels, weights = (
                None if part is None else part.to(fraction.device, non_blocking=True).index_select(0, index)
                for part in class_labels(targets, len(images))
            )
            self._add_classes(labels, weights, torch.stack([torch.ones_like(missing), missing], dim=1))
            self._samples.add(done, images, index, labels, fraction, step)

    def add_seconds(self, timer: StepTimer) -> None:
        """Take over what the timer has measured."""
        self._steps.extend(timer.steps())

    def write(self, trainer: Any, module: Any, facts: Mapping[str, Any]) -> Samples | None:
        """Write the epoch, begin the next one, and return its samples, if any. The only moment that waits for the device."""
        epoch, run = trainer.current_epoch, run_id(trainer, self.folder)
        put_file(self.folder, "augmentation.json", json.dumps({**facts, "run": run}, indent=2, default=str))
        add_line(self.folder, "augmentation", {"run": run, "epoch": epoch, "step": trainer.global_step, **self.values()})
        samples = self._samples.write(self.folder, epoch, module, run)
        self.reset()
        return samples

    def values(self) -> dict[str, Any]:
        """The epoch's numbers.

        Returns:
            `steps` (training steps), `augmented_steps`, `images` (in batches that were due), `drawn`, `no_map` (of those),
            `keep_fraction` (mean over the drawn images with a map; None without any), `keep_histogram` (of the same, `BINS`
            counts over [0, 1]), `object_kept` and `ground_kept` (shares of the objects' and of the backgrounds' pixels that are
            kept, over all drawn images with a map and an object mask; None without any), `per_class` (label to [drawn, no_map];
            an image with several labels counts in parts), `other_classes` (the same of labels from `CLASSES` on and of negative
            ones, together), `unlabelled` (the same of rows without any label), and medians in seconds: `seconds` (the
            augmentation of a batch), `step_seconds` (a whole step, from the batch's arrival on the device), `plain_seconds` (a
            step less its augmentation).
        """
        sums = [0.0] * (2 + BINS) if self._sums is None else self._sums.tolist()
        mapped = self.drawn - round(sums[0])
        kept = [0] * 4 if self._kept is None else self._kept.tolist()
        per_class, others = {}, [0.0, 0.0]
        if self._classes is not None:
            table, others = self._classes[:-1].cpu(), self._classes[-1].tolist()
            for label in table[:, 0].nonzero()[:, 0].tolist():
                per_class[str(label)] = [_count(value) for value in table[label].tolist()]
        augmented = [part for _, part in self._steps if part is not None]
        return {
            "steps": self.steps,
            "augmented_steps": self.augmented_steps,
            "images": self.due_images,
            "drawn": self.drawn,
            "no_map": round(sums[0]),
            "keep_fraction": sums[1] / mapped if mapped else None,
            "keep_histogram": [round(count) for count in sums[2:]],
            "object_kept": kept[0] / kept[1] if kept[1] else None,
            "ground_kept": kept[2] / kept[3] if kept[3] else None,
            "per_class": per_class,
            "other_classes": [_count(value) for value in others],
            "unlabelled": [0, 0] if self._unlabelled is None else [round(count) for count in self._unlabelled.tolist()],
            "seconds": _median(augmented),
            "step_seconds": _median([whole for whole, _ in self._steps]),
            "plain_seconds": _median([whole - (part or 0.0) for whole, part in self._steps]),
        }

    def _add_classes(self, labels: Tensor | None, weights: Tensor | None, counts: Tensor) -> None:
        if labels is None:
            return
        if self._classes is None:
            classes = max(CLASSES, 0 if weights is None else weights.shape[1])
            self._classes = torch.zeros(classes + 1, 2, device=counts.device)
        if weights is None:
            others = len(self._classes) - 1
            self._classes.index_add_(0, labels.where((labels >= 0) & (labels < others), others), counts)
        else:
            self._classes[: weights.shape[1]] += weights.t() @ counts
            nothing = (weights == 0).all(dim=1).float() @ counts
            self._unlabelled = nothing if self._unlabelled is None else self._unlabelled + nothing


def _count(value: float) -> float:
    return int(value) if value == int(value) else round(value, 2)


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
