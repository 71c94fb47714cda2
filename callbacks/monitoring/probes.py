"""The probes: a fixed set of images whose maps are watched, given or drawn from the validation data."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from groupcam_aug.callbacks.glue.batch import BatchKey, describe, get_item
from groupcam_aug.callbacks.glue.compat import misconfigured
from groupcam_aug.saliency import check_images

__all__ = ["Probes", "first_of_batch", "from_validation", "given", "spread", "stratified"]

_CANDIDATES = 4  # samples loaded per probe where the labels are not known beforehand


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
    images, labels = _read(trainer, batch, image_key, target_key)
    first = images[:count].cpu().clone(), None if labels is None else labels[:count].cpu().clone()
    if trainer.world_size > 1:
        first = trainer.strategy.broadcast(first, src=0)
    return Probes(*first, "the first training batch, as training_step gets it")


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


def stratified(labels: Tensor, count: int, generator: torch.Generator | None = None) -> list[int]:
    """Indices of at most `count` samples, every class in turn: (N,) class indices -> list.

    With a generator, which samples of a class, and which classes if there are more than `count`, is drawn; otherwise the first.
    """
    order = torch.arange(len(labels)) if generator is None else torch.randperm(len(labels), generator=generator)
    counts: Counter[int] = Counter()
    turns = []
    for label in labels[order].tolist():
        turns.append(counts[label])
        counts[label] += 1
    return order[torch.tensor(turns, dtype=torch.long).argsort(stable=True)][:count].tolist()


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the indices 0 to `total` - 1, evenly apart, both ends among them."""
    if total <= count:
        return list(range(total))
    return [round(i * (total - 1) / (count - 1)) for i in range(count)] if count > 1 else [0]


def _drawn(trainer: Any, loader: Any, image_key: BatchKey, target_key: BatchKey | None, count: int, seed: int) -> Probes:
    """At most `count` samples of this loader."""
    chosen = _choose(loader, target_key, count, seed)
    batch = _transferred(trainer, loader.collate_fn([loader.dataset[i] for i in chosen]))
    images, labels = _read(trainer, batch, image_key, target_key)
    images, labels = images.cpu(), None if labels is None else labels.cpu()
    if len(images) > count:
        rows = stratified(labels, count) if labels is not None and labels.ndim == 1 else list(range(count))
        images, labels = images[rows], None if labels is None else labels[rows]
    return Probes(images.clone(), labels, f"the validation data ({type(loader.dataset).__name__})")


def _choose(loader: Any, target_key: BatchKey | None, count: int, seed: int) -> list[int]:
    """Indices to load: the probes, stratified if the data set knows its labels; else candidates to choose from."""
    generator = torch.Generator().manual_seed(seed)
    # A SubsetRandomSampler says which part of a shared data set is the validation data.
    part = getattr(getattr(loader, "sampler", None), "indices", None)
    pool = torch.arange(len(loader.dataset)) if part is None else torch.as_tensor(part, dtype=torch.long)
    labels = None if target_key is None else _known_labels(loader.dataset)
    if labels is not None:
        return pool[stratified(labels[pool], count, generator)].tolist()
    share = count if target_key is None else _CANDIDATES * count
    return pool[torch.randperm(len(pool), generator=generator)[:share]].tolist()


def _known_labels(dataset: Any) -> Tensor | None:
    """(N,) class indices without loading a sample, where data sets of torchvision and torch keep them."""
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices, dtype=torch.long)]
    if isinstance(dataset, ConcatDataset):
        parts = [_known_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat([part for part in parts if part is not None])
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    else:
        labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if isinstance(labels, np.ndarray) or (isinstance(labels, list | tuple) and all(isinstance(label, int) for label in labels)):
        labels = torch.as_tensor(labels)
    if not isinstance(labels, Tensor) or labels.shape != (len(dataset),) or labels.is_floating_point():
        return None
    return labels.cpu().long()


def _loaders(trainer: Any) -> list[Any]:
    """The validation loaders, made as Lightning makes them if it has not done so yet.

    It has not where no epoch so far needs them: without a sanity check, or after a resume, if validation is rare.
    """
    if trainer.val_dataloaders is None and trainer.enable_validation:
        with _validating(trainer):
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
    loaders = trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, list | tuple) else [loaders]


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


def _read(trainer: Any, batch: Any, image_key: BatchKey, target_key: BatchKey | None) -> tuple[Tensor, Tensor | None]:
    try:
        images = get_item(batch, image_key)
    except KeyError as error:
        raise misconfigured(
            trainer, f"{error.args[0]}. Say where the images are: SaliencyMonitor(image_key=...), or give probes with images="
        ) from None
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise misconfigured(
            trainer,
            f"image_key={image_key!r} gives {describe(images)}, not floating-point images (N, C, H, W); the batch holds "
            f"{describe(batch)}. Name the images with image_key=, or give probes as the network takes them with images=",
        )
    labels = None
    if target_key is not None and not isinstance(batch, Tensor):
        try:
            labels = _labels(get_item(batch, target_key), len(images))
        except KeyError:
            labels = None  # a data set without labels: the network's own first choice is explained
        except (TypeError, ValueError) as error:
            raise misconfigured(
                trainer,
                f"target_key={target_key!r}: {error}. Name the labels with target_key=, or give target_key=None to explain "
                "the network's own first choice",
            ) from None
    return images.detach().as_subclass(Tensor), labels


def _labels(labels: Any, count: int) -> Tensor:
    if isinstance(labels, Sequence) and not isinstance(labels, str) and all(isinstance(label, int) for label in labels):
        labels = torch.tensor(labels, dtype=torch.long)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor or a list of class indices, got {type(labels).__name__}")
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit {count} images: give ({count},) class indices or "
            f"({count}, classes) soft rows"
        )
    labels = labels.detach().as_subclass(Tensor).cpu().clone()
    return labels if labels.is_floating_point() or labels.ndim == 2 else labels.long()
