"""The order of an epoch, and the random numbers of each sample in it: by seed, epoch and sample alone.

So a training that goes on from the end of an epoch goes on as if it had not been stopped, whatever the number of loading
processes, and no callback, network or other loader that draws random numbers changes what a training gets.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, get_worker_info

from groupcam_aug.recipes.splits import hash64

__all__ = ["EpochIndex", "EpochSampler", "SeededItems", "shuffled_loader"]


def shuffled_loader(
    dataset: Any, batch_size: int, trainer: pl.Trainer | None = None, seed: int | None = None, **options: Any
) -> DataLoader:
    """Training batches in a new order every epoch.

    Args:
        dataset: indexed with `EpochIndex`; in `SeededItems` where its samples draw random numbers.
        batch_size: samples per batch and process.
        trainer: whose processes share the samples. Default: None = this process has all.
        seed: of the order. Default: None = the run's, as `seed_everything` left it; without one drawn from torch's random numbers
            (0 with several processes, which must agree).
        options: further arguments of `DataLoader`.
    """
    shares = getattr(trainer, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
    if seed is None and "PL_GLOBAL_SEED" in os.environ:  # where `seed_everything` leaves it
        seed = int(os.environ["PL_GLOBAL_SEED"])
    elif seed is None:
        seed = 0 if shares["num_replicas"] > 1 else int(torch.randint(2**62, ()))
    return _Loader(dataset, batch_size=batch_size, sampler=EpochSampler(dataset, seed, **shares), **options)


class EpochIndex(int):
    """The number of a sample, with the seed of the epoch that it is drawn in."""

    seed: int = 0

    @classmethod
    def of(cls, index: int, seed: int) -> EpochIndex:
        """Both together."""
        made = cls(index)
        made.seed = seed
        return made


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch); gives `EpochIndex`. A Trainer says which epoch, without one each round is the next.

    Args:
        dataset: its length counts.
        seed: of all epochs.
        num_replicas: processes that share the samples. Default: 1.
        rank: which of them. Default: 0.
    """

    def __init__(self, dataset: Any, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, seed=hash64(f"{seed} order") >> 2)
        self.run_seed = seed

    def __iter__(self) -> Iterator[EpochIndex]:
        """The samples of this process."""
        seed = hash64(f"{self.seed} {self.epoch}")
        order = [EpochIndex.of(index, seed) for index in super().__iter__()]
        self.epoch += 1
        return iter(order)


class SeededItems(Subset):
    """A data set whose samples draw their random numbers by (seed, epoch, sample), where they are asked for by `EpochIndex`.

    The global numbers of torch (CPU), numpy and Python stay as they are. With a plain index a sample draws from them.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, range(len(dataset)))  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        """A sample of the data set."""
        if not isinstance(index, EpochIndex):
            return self.dataset[index]
        with _numbers_from(hash64(f"{index.seed} {int(index)}")):
            return self.dataset[int(index)]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """Those of a batch."""
        return [self[index] for index in indices]


class _Loader(DataLoader):
    """Starts when its first batch is asked for: a Trainer makes the iterator of a resumed epoch before it says which epoch."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


@contextmanager
def _numbers_from(seed: int) -> Iterator[None]:
    loading = get_worker_info() is not None  # a process that draws for nothing else
    kept = None if loading else (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002 - what transforms may draw from
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the GPU's, too
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        if kept is not None:
            torch.set_rng_state(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002
            random.setstate(kept[2])
