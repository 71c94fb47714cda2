"""The probes: a fixed set of images whose maps are watched, given or drawn from the validation data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from groupcam_aug.callbacks.glue.batch import BatchKey, check_batch_images, get_item
from groupcam_aug.callbacks.glue.class_names import flattened
from groupcam_aug.callbacks.glue.compat import misconfigured
from groupcam_aug.callbacks.monitoring.probe_choice import choose, spread, stratified
from groupcam_aug.saliency import check_images
from groupcam_aug.targets import IGNORED

__all__ = ["Probes", "first_of_batch", "from_validation", "given"]


@dataclass(frozen=True)
class Probes:
    """Images (P, C, H, W) as the network takes them, on the CPU; their labels, if known; where they come from, in words.

    Labels are (P,) class indices or (P, classes) soft rows.
    """

    images: Tensor
    labels: Tensor | None
    origin: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_single_labels(self) -> bool:
        """Whether each probe has one label, so that a first choice is right or wrong."""
        if self.labels is None or self.labels.ndim == 1 or self.labels.shape[1] == 1:
            return self.labels is not None
        return bool((self.labels.float().sum(dim=1) < 1.01).all())

    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, by which a resumed run knows whether it watches the same ones."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def shown(self, count: int) -> list[int]:
        """Indices of at most `count` probes to look at: of as many classes as possible, in order."""
        if self.labels is not None and self.labels.ndim == 1:
            return sorted(stratified(self.labels, count))
        return spread(len(self), count)


def given(images: Any, labels: Any) -> Probes | None:
    """The probes that a user hands over: a tensor and labels, or a pair of both. None if there are none.

    Raises:
        TypeError: images that are no floating-point tensor, labels of another kind.
        ValueError: another shape, no image at all, another number of labels, labels without images.
    """
    if images is None:
        if labels is not None:
            raise ValueError("labels= belongs to images=: give both, or neither to have probes drawn from the validation data")
        return None
    if isinstance(images, tuple | list):
        if len(images) != 2 or labels is not None:
            raise ValueError(
                f"images must be a tensor (P, C, H, W), or a pair (images, labels) without labels=; got {len(images)} items"
                + (" and labels" if labels is not None else "")
            )
        images, labels = images
    images = check_images(images).cpu().clone()
    if not len(images):
        raise ValueError("images holds no image: give at least one probe")
    return Probes(images, None if labels is None else _labels(labels, len(images)), "the given images")


def first_of_batch(trainer: Any, batch: Any, image_key: BatchKey, target_key: BatchKey | None, count: int) -> Probes:
    """The first `count` samples of a batch, on every rank those of rank zero's."""
    where = "the first training batch, as training_step gets it"
    images, labels = _read(trainer, batch, image_key, target_key, where)
    first = images[:count].cpu().clone(), None if labels is None else labels[:count].cpu().clone()
    if trainer.world_size > 1:
        first = trainer.strategy.broadcast(first, src=0)
    return Probes(*first, where)


def from_validation(trainer: Any, image_key: BatchKey, target_key: BatchKey | None, count: int, seed: int) -> Probes | None:
    """At most `count` samples of the validation data, as many of each class as can be, the same in every run and on every rank.

    They go the way of a validation batch: the data set's transforms, the loader's `collate_fn`, the module's transfer hooks.
    Not the first batches are taken, which in a folder sorted by class hold one class, and no loader is iterated: samples are
    asked of the loader's data set. The random numbers of the run are left as they are. To be called while the Trainer trains.

    Returns:
        The probes; None without a map-style data set in batches.

    Raises:
        MisconfigurationException: samples without images under `image_key`, or without usable labels under `target_key`.
    """
    with _own_randomness(seed, trainer.strategy.root_device):
        loader = next((loader for loader in _loaders(trainer) if _is_map_style(loader)), None)
        probes = None if loader is None else _drawn(trainer, loader, image_key, target_key, count, seed)
    # Ranks may hold other parts of the data; what they watch, and compare when a run is resumed, must be the same.
    return trainer.strategy.broadcast(probes, src=0) if trainer.world_size > 1 else probes


def _drawn(trainer: Any, loader: Any, image_key: BatchKey, target_key: BatchKey | None, count: int, seed: int) -> Probes:
    """At most `count` samples of this loader."""
    chosen = choose(loader, target_key is not None, count, seed)
    batch = _transferred(trainer, loader.collate_fn([loader.dataset[i] for i in chosen]))
    where = f"the validation data ({type(loader.dataset).__name__})"
    images, labels = _read(trainer, batch, image_key, target_key, where)
    images, labels = images.cpu(), None if labels is None else labels.cpu()
    if len(images) > count:
        rows = stratified(labels, count) if labels is not None and labels.ndim == 1 else list(range(count))
        images, labels = images[rows], None if labels is None else labels[rows]
    return Probes(images.clone(), labels, where)


def _loaders(trainer: Any) -> list[Any]:
    """The validation loaders, made as Lightning makes them if it has not done so yet.

    It has not where no epoch so far needs them: without a sanity check, or after a resume, if validation is rare.
    """
    if trainer.val_dataloaders is None and trainer.enable_validation:
        with _validating(trainer):
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return list(flattened(trainer.val_dataloaders))


def _is_map_style(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return False
    return hasattr(loader.dataset, "__getitem__") and hasattr(loader.dataset, "__len__") and len(loader.dataset) > 0


def _transferred(trainer: Any, batch: Any) -> Any:
    """A batch on the device after all that happens to a validation batch on its way."""
    data, hook = trainer.datamodule, "on_before_batch_transfer"
    # As Lightning does it: the data module's hook, if it has one of its own.
    home = getattr(getattr(type(data), hook, None), "__module__", "lightning").partition(".")[0]
    owner = trainer.lightning_module if home in ("lightning", "pytorch_lightning") else data
    with _validating(trainer), torch.no_grad():
        batch = getattr(owner, hook)(trainer.precision_plugin.convert_input(batch), 0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextmanager
def _validating(trainer: Any) -> Iterator[None]:
    """The Trainer in the stage in which the user's hooks take a batch for one of validation, not for one to augment."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch, numpy and Python that follow from `seed` in here, and go on as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    index = device.index if device.type not in ("cpu", "mps") else None
    with torch.random.fork_rng(
        devices=[] if index is None else [index], device_type=device.type if index is not None else "cuda"
    ):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed every GPU
        if index is not None:
            torch.get_device_module(device).manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _read(trainer: Any, batch: Any, image_key: BatchKey, target_key: BatchKey | None, where: str) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a batch of the data named by `where`; of those with a label, where some have none (-100)."""
    instead = "or give probes as the network takes them with images="
    try:
        images = get_item(batch, image_key)
    except KeyError as error:
        raise misconfigured(
            trainer,
            f"{error.args[0]}. Probes come from {where}: say where the images are there, with SaliencyMonitor(image_key=...), "
            f"{instead}",
        ) from None
    images = check_batch_images(trainer, images, batch, image_key, instead).detach().as_subclass(Tensor)
    if not len(images):
        raise misconfigured(trainer, f"the batch from {where} holds no image; {instead}")
    if target_key is None or isinstance(batch, Tensor):
        return images, None
    try:
        labels = _labels(get_item(batch, target_key), len(images))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, KeyError) and target_key == 1:  # the default: a data set without labels
            return images, None
        raise misconfigured(
            trainer,
            f"target_key={target_key!r}: {error.args[0]}. Name the labels with target_key=, or give target_key=None to explain "
            "the network's own first choice",
        ) from None
    if labels.ndim == 1 and bool((unlabelled := labels == IGNORED).any()):
        return (images, None) if bool(unlabelled.all()) else (images[~unlabelled.to(images.device)], labels[~unlabelled])
    return images, labels


def _labels(labels: Any, count: int) -> Tensor:
    if isinstance(labels, Sequence) and not isinstance(labels, str) and all(isinstance(label, int) for label in labels):
        labels = torch.tensor(labels, dtype=torch.long)
    if not isinstance(labels, Tensor):
        kind = type(labels).__name__ + (f" of {type(labels[0]).__name__}" if isinstance(labels, list) and labels else "")
        raise TypeError(f"labels must be a tensor or a list of class indices, got {kind}")
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit {count} images: give ({count},) class indices or "
            f"({count}, classes) soft rows"
        )
    labels = labels.detach().as_subclass(Tensor).cpu().clone()
    return labels if labels.is_floating_point() or labels.ndim == 2 else labels.long()
