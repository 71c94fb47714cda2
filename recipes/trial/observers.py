"""What a trial looks at while a Trainer fits and tests: time, progress, pairing, and which test images are classified rightly.

Both callbacks only read: training and random numbers are those of a plain ``fit``, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from groupcam_aug.callbacks.glue.batch import BatchKey, read_batch
from groupcam_aug.callbacks.glue.dispatcher import Dispatcher
from groupcam_aug.callbacks.glue.network import borrowed_network, find_network
from groupcam_aug.recipes.trial.digests import BatchDigest, digest_of, digest_of_data
from groupcam_aug.targets import select_output

__all__ = ["ClassCounter", "FitObserver"]


class FitObserver(pl.Callback):
    """Seconds of training, digests that say whether two runs were paired, and progress.

    Args:
        progress: called with the share of the training that is done, in [0, 1].
    """

    def __init__(self, progress: Callable[[float], None] = lambda share: None) -> None:
        self.progress = progress
        self.seconds: list[float] = []  # of each step, with the wait for its batch, without validation
        self.start = ""  # digest of the first weights
        self.steps = 0  # batches of an epoch
        self.images: int | None = None  # of the training set; None where it does not say
        self.data: str | None = None  # digest of the training set; None where it tells nothing of itself
        self.losses: list[Tensor] = []  # of the epoch
        self._batches = BatchDigest()
        self._trainer: Any = None
        self._mark = 0.0

    @property
    def batches(self) -> str | None:
        """Digest of all training batches, as they were before any augmentation of a callback; None if they hold no tensors."""
        return self._batches.text

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stand first in line for the batches."""
        if stage == "fit":
            self._trainer = trainer
            Dispatcher.attach(trainer.strategy, self._on_batch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the digest of the start, and see how much there is to do."""
        self.start = digest_of(pl_module)
        steps = trainer.num_training_batches
        data: Any = getattr(trainer.train_dataloader, "dataset", None)
        self.steps = int(steps) if steps < float("inf") else 0
        self.images = len(data) if hasattr(data, "__len__") else None
        self.data = digest_of_data(data)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.losses.clear()
        self._mark = _now(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Count the step."""
        now = time.perf_counter()
        self.seconds.append(now - self._mark)
        self._mark = now
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(loss.detach())
        if self.steps and (epochs := trainer.max_epochs) and epochs > 0:
            self.progress(min(1.0, len(self.seconds) / (self.steps * epochs)))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no part of a step."""
        self._mark = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the device, once an epoch."""
        if self.seconds:
            self.seconds[-1] += max(0.0, _now(trainer) - self._mark)
        self._batches.take()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Step out of the line."""
        self._leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same after an error or Ctrl-C."""
        self._leave()

    def _on_batch(self, batch: Any) -> Any:
        if self._trainer is not None and self._trainer.training and not self._trainer.sanity_checking:
            self._batches.add(batch)
        return batch

    def _leave(self) -> None:
        if self._trainer is not None:
            Dispatcher.detach(self._trainer.strategy, self._on_batch)
        self._trainer = None


class ClassCounter(pl.Callback):
    """Which test images the network classifies rightly, by class and, where the data know them, by group.

    Args:
        network: dotted name of the network on the module. None: the module itself.
        image_key: where the images are in a batch.
        target_key: where the labels are.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network.
    """

    def __init__(
        self,
        network: str | None = None,
        image_key: BatchKey = 0,
        target_key: BatchKey | None = 1,
        output: Any = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.network, self.image_key, self.target_key = network, image_key, target_key
        self.output, self.preprocess = output, preprocess
        self.begin()

    def begin(self, loader: Any = None) -> None:
        """A data set begins.

        Args:
            loader: of the data set; its ``dataset.groups``, one name per sample, is read where samples come in order.
        """
        groups = getattr(getattr(loader, "dataset", None), "groups", None)
        in_order = isinstance(getattr(loader, "sampler", None), SequentialSampler)
        self.groups: Sequence[str] | None = groups if groups is not None and in_order else None
        self.problem: str | None = None  # why nothing can be counted
        self._digest = BatchDigest()
        self._right: list[Tensor] = []
        self._broken: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Take the digest, before the module does anything to the batch."""
        self._digest.add(batch)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Classify the batch once more: what a user's ``test_step`` returns is not known."""
        if self.problem is not None:
            return
        try:
            right, labels, broken = self._classified(trainer, pl_module, batch)
        except (
            Exception
        ) as error:  # a run that has been trained for hours is not lost for want of this figure; the reason is kept
            self.problem = f"{type(error).__name__}: {error}" if not isinstance(error, _Uncountable) else str(error)
            return
        self._right.append(right)
        self._labels.append(labels)
        self._broken.append(broken)

    def result(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Counts and shares of the data set that was tested on last.

        Args:
            names: of the classes. None: their numbers.

        Returns:
            ``digest`` of the batches (None: they hold no tensors) and, where images were counted, ``n``, ``classes`` and
            ``groups`` (name to [right, images]), ``unlabelled`` (images left out, whose label is negative), and ``metrics``:
            ``accuracy``, ``mean_class_accuracy``, ``worst_class_accuracy`` and, where groups are known,
            ``worst_group_accuracy``. Where logits are not finite, ``not_finite`` images of ``n`` in place of metrics.
        """
        found: dict[str, Any] = {"digest": self._digest.text}
        if self.problem is not None or not self._right:
            return found
        right, labels, broken = (torch.cat(parts).cpu() for parts in (self._right, self._labels, self._broken))
        counts = labels >= 0  # the others, -1 or -100 by custom, are none
        found |= {"n": int(counts.sum()), "unlabelled": int((~counts).sum())}
        if bool(broken.any()):
            self.problem = f"the network's logits are not finite for {int(broken.sum())} of {len(broken)} images: it diverged"
            return found | {"not_finite": int(broken.sum())}
        if not found["n"]:
            self.problem = f"no label of {len(labels)} images is that of a class (all are negative)"
            return found
        by_class = {label: _count(right[labels == label]) for label in labels[counts].unique().tolist()}
        groups: dict[str, list[int]] = {}
        if self.groups is not None and len(right) <= len(self.groups):  # fewer where batches are limited
            members: dict[str, list[int]] = {}
            for i in counts.nonzero().flatten().tolist():
                members.setdefault(self.groups[i], []).append(i)
            groups = {group: _count(right[index]) for group, index in sorted(members.items())}
        metrics = {"accuracy": float(right[counts].float().mean())}
        metrics["mean_class_accuracy"] = sum(map(_share, by_class.values())) / len(by_class)
        metrics["worst_class_accuracy"] = min(map(_share, by_class.values()))
        if groups:
            metrics["worst_group_accuracy"] = min(map(_share, groups.values()))
        called = _class_names(list(by_class), names)
        classes = dict(zip(called, by_class.values(), strict=True))
        return found | {"classes": classes, "groups": groups, "metrics": metrics}

    def _classified(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> tuple[Tensor, ...]:
        """(N,) bool, (N,) labels, and whether an image's logits leave its first choice open, (N,) bool."""
        images, labels = read_batch(trainer, batch, self.image_key, self.target_key, "trial")
        network = find_network(trainer, module, self.network)
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            kind = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise _Uncountable(f"it takes one class index per image, the test batches hold {kind}")
        with borrowed_network(trainer, network, "trial", check=False):
            logits = select_output(network(images if self.preprocess is None else self.preprocess(images)), self.output)
        if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
            raise _Uncountable(f"it takes logits (N, classes) of {len(labels)} images, the network gives {tuple(logits.shape)}")
        # Minus infinity rules a class out; of NaN or infinity `argmax` would still choose a class.
        return logits.argmax(dim=1) == labels, labels, ~logits.amax(dim=1).isfinite()


class _Uncountable(Exception):
    """No accuracy can be counted."""


def _class_names(labels: Sequence[int], names: Sequence[str] | None) -> list[str]:
    """What the classes are called, each by a name of its own."""
    called = [str(names[label]) if names is not None and label < len(names) else str(label) for label in labels]
    return [name if called.count(name) == 1 else f"{name} ({label})" for name, label in zip(called, labels, strict=True)]


def _count(right: Tensor) -> list[int]:
    return [int(right.sum()), len(right)]


def _share(count: Sequence[int]) -> float:
    return count[0] / count[1]


def _now(trainer: pl.Trainer) -> float:
    """The time when the device has done what it was given."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()
