"""Known regularisers to compare with, CutMix and RandomErasing, on training batches as a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from groupcam_aug.arguments import check_choice, check_number, check_whole
from groupcam_aug.callbacks.glue.batch import (
    BatchKey,
    batch_generator,
    check_keys,
    describe,
    has_run_out,
    read_batch,
    replace_item,
)
from groupcam_aug.callbacks.glue.compat import misconfigured
from groupcam_aug.callbacks.glue.dispatcher import BatchCallback, Dispatcher, is_for_training

__all__ = ["BatchTransform", "random_erasing"]

SPREAD = 0.1  # of the erased share on both sides of its mean
LONGEST = 3.3  # ratio of the sides of an erased rectangle, at most


def random_erasing(area: float, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """RandomErasing of torchvision: always one rectangle, zeros, with a mean share of ``area`` of the image.

    Args:
        area: mean share, in [0.03, 0.8]; uniform within 0.1 of it, less at the ends of that range.
        height: of the images, in pixels.
        width: likewise.
    """
    spread = min(SPREAD, area - 0.02, 0.82 - area)
    low, high = area - spread, area + spread
    # Only shapes that fit: RandomErasing leaves the others out, and the mean would be another.
    longest = max(1.0, min(LONGEST, (min(height, width) - 1) ** 2 / (high * height * width)))
    return v2.RandomErasing(p=1.0, scale=(low, high), ratio=(1 / longest, longest), value=0.0)


@dataclass
class _Fit:
    """One fit: made in `setup`, dropped in `teardown` or after an error."""

    trainer: Any
    dispatcher: Dispatcher
    num_classes: int | None
    passed: bool = False  # whether a batch has come by since the last step


class BatchTransform(BatchCallback):
    """CutMix or RandomErasing of training batches on their device, reached as `GroupCAMAugmentation` reaches them.

    Random numbers follow from (seed, rank, batch number), and the global ones stay as they are: a run with this callback
    has the same order and crops as one without. Validation, test, predict and sanity-check batches are never touched.

    Args:
        kind: "cutmix" = with probability ``p`` a batch's images get a rectangle of their neighbours', and the labels become rows
            (N, num_classes) float32 in proportion (torchvision's CutMix). "erase" = each image with probability ``p`` gets a
            rectangle of zeros, the mean colour of normalised images (torchvision's RandomErasing).
        p: in [0, 1]. Default: 0.5.
        area: mean share of an image that "erase" takes, in [0.03, 0.8]. Default: 0.18.
        alpha: of CutMix's Beta(alpha, alpha), above 0. Default: 1.0.
        image_key: where the images (N, C, H, W) are in a batch, as in `GroupCAMAugmentation`. Default: the first item.
        target_key: where the labels (N,) int64 or (N, num_classes) are, likewise; "cutmix" only. Default: the second item.
        start_epoch: first epoch that is changed. Default: 0.
        num_classes: for CutMix's rows. Default: None = ``num_classes`` of the LightningModule, else of the data module.
        seed: of the draws. Default: 0.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: no images or labels under the keys, or CutMix does not know the number of classes.
    """

    def __init__(
        self,
        kind: Literal["cutmix", "erase"],
        p: float = 0.5,
        area: float = 0.18,
        alpha: float = 1.0,
        image_key: BatchKey = 0,
        target_key: BatchKey | None = 1,
        start_epoch: int = 0,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("cutmix", "erase"))
        check_number("p", p, 0, 1)
        check_number("area", area, 0.03, 0.8)
        check_number("alpha", alpha, above=True)
        check_whole("start_epoch", start_epoch)
        check_whole("num_classes", num_classes, 2, optional=True)
        check_whole("seed", seed)
        check_keys(image_key=image_key, target_key=target_key)
        if kind == "cutmix" and target_key is None:
            raise ValueError("kind='cutmix' mixes labels, too: give target_key")
        self.kind, self.p, self.area, self.alpha, self.seed = kind, p, area, alpha, seed
        self.image_key, self.target_key, self.start_epoch, self.num_classes = image_key, target_key, start_epoch, num_classes
        self._fit: _Fit | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand in line for the batches."""
        if stage != "fit":
            return
        self._release()
        known = (self.num_classes, *(getattr(part, "num_classes", None) for part in (pl_module, trainer.datamodule)))
        num_classes = next((number for number in known if isinstance(number, int)), None)
        self._fit = _Fit(trainer, Dispatcher.attach(trainer.strategy, self._on_batch), num_classes)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Make sure that the batch came by."""
        if (fit := self._fit) is None:
            return
        passed, fit.passed = fit.passed, False
        instead = "Apply torchvision's transform inside training_step instead"
        fit.dispatcher.check_arrival(trainer, batch, passed, type(self).__name__, instead)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold on to no batch."""
        if self._fit is not None:
            self._fit.dispatcher.last = None

    def _on_batch(self, batch: Any) -> Any:
        """A batch on its way to `training_step`, changed if it is one of training and its turn."""
        if (fit := self._fit) is None or not is_for_training(fit.trainer, batch):
            return batch
        trainer, fit.passed = fit.trainer, True
        target_key = self.target_key if self.kind == "cutmix" else None
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if trainer.current_epoch < self.start_epoch or (number and has_run_out(batch, self.image_key, target_key)):
            return batch
        images, labels = read_batch(trainer, batch, self.image_key, target_key, type(self).__name__)
        generator = batch_generator(self.seed, trainer.global_rank, number)
        if target_key is None:
            return replace_item(batch, self.image_key, self._erased(images, generator))
        images, labels = self._mixed(fit, images, labels, generator)
        return replace_item(replace_item(batch, self.image_key, images), target_key, labels)

    def _erased(self, images: Tensor, generator: torch.Generator) -> Tensor:
        drawn = (torch.rand(len(images), generator=generator) < self.p).nonzero()[:, 0].tolist()
        erasing, result = random_erasing(self.area, *images.shape[-2:]), images.clone()
        with _global_numbers_from(generator):
            for i in drawn:
                result[i] = erasing(images[i])
        return result

    def _mixed(self, fit: _Fit, images: Tensor, labels: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or len(labels) != len(images):
            raise misconfigured(
                fit.trainer,
                f"CutMix needs labels (N,) or (N, num_classes) for {len(images)} images; "
                f"target_key={self.target_key!r} gives {describe(labels)}",
            )
        if labels.ndim == 1 and fit.num_classes is None:
            raise misconfigured(
                fit.trainer, "CutMix needs the number of classes: BatchTransform(num_classes=...); module and data have none"
            )
        if float(torch.rand((), generator=generator)) >= self.p:
            return images, labels
        with _global_numbers_from(generator):
            labels, num_classes = (labels.long(), fit.num_classes) if labels.ndim == 1 else (labels, None)
            mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=self.alpha, num_classes=num_classes)(images, labels)
        return mixed


@contextmanager
def _global_numbers_from(generator: torch.Generator) -> Iterator[None]:
    """Let torchvision, which draws from the CPU's global numbers, draw from `generator`; the global ones stay as they are."""
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**62, (), generator=generator))
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPU's, too
        yield
