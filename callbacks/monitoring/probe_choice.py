"""Which samples become probes: as many of each class as can be, or evenly apart."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from groupcam_aug.targets import IGNORED

__all__ = ["choose", "spread", "stratified"]

_CANDIDATES = 4  # samples loaded per probe where the labels are not known beforehand


def choose(loader: Any, labelled: bool, count: int, seed: int) -> list[Any]:
    """Indices to load: the samples, stratified if the data set knows their labels; else candidates to choose from.

    Args:
        loader: with a map-style data set.
        labelled: whether labels are asked for. Samples without one (-100) are not chosen.
        count: how many samples are wanted.
        seed: of the draw.
    """
    share = _CANDIDATES * count if labelled else count
    if (indices := _users_indices(loader, share)) is not None:
        return indices
    generator = torch.Generator().manual_seed(seed)
    # A SubsetRandomSampler says which part of a shared data set is the validation data.
    part = getattr(getattr(loader, "sampler", None), "indices", None)
    pool = torch.arange(len(loader.dataset)) if part is None else torch.as_tensor(part, dtype=torch.long)
    labels = _known_labels(loader.dataset) if labelled else None
    if labels is not None and bool((has_label := labels[pool] != IGNORED).any()):
        pool = pool[has_label]
        return pool[stratified(labels[pool], count, generator)].tolist()
    return pool[torch.randperm(len(pool), generator=generator)[:share]].tolist()


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


def _users_indices(loader: Any, count: int) -> list[Any] | None:
    """The first `count` indices of a sampler of the user's, if they are no numbers: boxes on a map, pairs of index and size."""
    samplers = (loader.sampler, loader.batch_sampler)
    if all(type(sampler).__module__ == "torch.utils.data.sampler" for sampler in samplers):
        return None  # a stock one is not begun: it may draw from a generator of the user's
    indices = list(islice(chain.from_iterable(loader.batch_sampler), count))
    return None if all(isinstance(index, Integral) for index in indices) else indices


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
