"""What a trial looks at while a Trainer fits and tests: time, progress, pairing, and which test images are classified rightly.

Both callbacks only read: training and random numbers are those of a plain ``fit``, bit for bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import SequentialSampler

from groupcam_aug.callbacks.glue.batch import BatchKey, read_batch
from groupcam_aug.callbacks.glue.dispatcher import Dispatcher
from groupcam_aug.callbacks.glue.network import borrowed_network, find_network
from groupcam_aug.targets import select_output

__all__ = ["ClassCounter", "FitObserver", "digest_of"]

SAMPLED = 1024  # numbers of each tensor of a batch that enter the digest


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
        self.losses: list[Tensor] = []  # of the epoch
        self._batches = hashlib.blake2b(digest_size=8)
        self._waiting: list[Tensor] = []  # of the epoch, still on the device
        self._trainer: Any = None
        self._mark = 0.0

    @property
    def batches(self) -> str:
        """Digest of all training batches, as they were before any augmentation of a callback."""
        return self._batches.hexdigest()

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
        for part in self._waiting:
            self._batches.update(part.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self._waiting.clear()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Step out of the line."""
        self._leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same after an error or Ctrl-C."""
        self._leave()

    def _on_batch(self, batch: Any) -> Any:
        if self._trainer is not None and self._trainer.training and not self._trainer.sanity_checking:
            for leaf in tree_leaves(batch):
                if isinstance(leaf, Tensor) and leaf.numel():
                    flat = leaf.detach().reshape(-1)
                    self._waiting.append(flat[:: max(1, len(flat) // SAMPLED)].clone())
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
        self.problem: str | None = None  # why nothing can be counted
        self.groups: Sequence[str] | None = None
        self.begin()

    def begin(self, loader: Any = None) -> None:
        """A data set begins.

        Args:
            loader: of the data set; its ``dataset.groups``, one name per sample, is read where samples come in order.
        """
        groups = getattr(getattr(loader, "dataset", None), "groups", None)
        in_order = isinstance(getattr(loader, "sampler", None), SequentialSampler)
        self.groups = groups if groups is not None and in_order else None
        self._right: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        """Classify the batch once more: what a user's ``test_step`` returns is not known."""
        if self.problem is not None:
            return
        try:
            right, labels = self._classified(trainer, pl_module, batch)
        except (
            Exception
        ) as error:  # a run that has been trained for hours is not lost for want of this figure; the reason is kept
            self.problem = f"{type(error).__name__}: {error}" if not isinstance(error, _Uncountable) else str(error)
            return
        self._right.append(right)
        self._labels.append(labels)

    def result(self, names: Sequence[str] | None) -> dict[str, Any]:
        """Counts and shares of the data set that was tested on last.

        Args:
            names: of the classes. None: their numbers.

        Returns:
            ``n``, ``classes`` and ``groups`` (name to [right, images]), and ``metrics``: ``accuracy``, ``mean_class_accuracy``,
            ``worst_class_accuracy`` and, where groups are known, ``worst_group_accuracy``. Nothing where nothing was counted.
        """
        if self.problem is not None or not self._right:
            return {}
        right, labels = torch.cat(self._right).cpu(), torch.cat(self._labels).cpu()
        classes = {
            names[label] if names is not None and label < len(names) else str(label): _count(right[labels == label])
            for label in labels.unique().tolist()
        }
        groups: dict[str, list[int]] = {}
        if self.groups is not None and len(self.groups) == len(right):
            members: dict[str, list[int]] = {}
            for i, group in enumerate(self.groups):
                members.setdefault(group, []).append(i)
            groups = {group: _count(right[index]) for group, index in sorted(members.items())}
        metrics = {"accuracy": float(right.float().mean())}
        metrics["mean_class_accuracy"] = sum(_share(count) for count in classes.values()) / len(classes)
        metrics["worst_class_accuracy"] = min(map(_share, classes.values()))
        if groups:
            metrics["worst_group_accuracy"] = min(map(_share, groups.values()))
        return {"n": len(right), "classes": classes, "groups": groups, "metrics": metrics}

    def _classified(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
        """(N,) bool, and (N,) labels."""
        images, labels = read_batch(trainer, batch, self.image_key, self.target_key, "trial")
        network = find_network(trainer, module, self.network)
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            kind = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise _Uncountable(f"it takes one class index per image, the test batches hold {kind}")
        with borrowed_network(trainer, network, "trial", check=False):
            logits = select_output(network(images if self.preprocess is None else self.preprocess(images)), self.output)
        if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
            raise _Uncountable(f"it takes logits (N, classes) of {len(labels)} images, the network gives {tuple(logits.shape)}")
        return logits.argmax(dim=1) == labels, labels


class _Uncountable(Exception):
    """No accuracy can be counted."""


def digest_of(module: torch.nn.Module) -> str:
    """16 hexadecimal digits that tell weights and buffers apart."""
    seen = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            seen.update(name.encode())
            seen.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def _count(right: Tensor) -> list[int]:
    return [int(right.sum()), len(right)]


def _share(count: Sequence[int]) -> float:
    return count[0] / count[1]


def _now(trainer: pl.Trainer) -> float:
    """The time when the device has done what it was given."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()
