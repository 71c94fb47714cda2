"""Short digests that tell runs apart: of weights, of the batches that were fed, of a data set as it lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Subset

__all__ = ["BatchDigest", "digest_of", "digest_of_data"]

SAMPLED = 1024  # numbers of a tensor, and sizes of files, that enter a digest
_HELD = ("samples", "targets", "labels", "data", "tensors")  # what data sets call what they hold


class BatchDigest:
    """Of all batches added; their numbers stay on the device until they are taken from it."""

    def __init__(self) -> None:
        self._seen = hashlib.blake2b(digest_size=8)
        self._waiting: list[Tensor] = []
        self._is_empty = True

    def add(self, batch: Any) -> None:
        """Take some numbers of each tensor of a batch."""
        for leaf in tree_leaves(batch):
            if isinstance(leaf, Tensor) and leaf.numel():
                flat = leaf.detach().reshape(-1)
                self._waiting.append(flat[:: max(1, len(flat) // SAMPLED)].clone())

    def take(self) -> None:
        """Wait for the device."""
        for part in self._waiting:
            self._seen.update(_bytes(part))
            self._is_empty = False
        self._waiting.clear()

    @property
    def text(self) -> str | None:
        """16 hexadecimal digits; None if there was no tensor in any batch."""
        self.take()
        return None if self._is_empty else self._seen.hexdigest()


def digest_of(module: torch.nn.Module) -> str:
    """16 hexadecimal digits that tell weights and buffers apart."""
    seen = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            seen.update(name.encode())
            seen.update(_bytes(tensor.detach()))
    return seen.hexdigest()


def digest_of_data(data: Any) -> str | None:
    """16 hexadecimal digits of what is cheap to know of a data set: its length, labels, names of files and sizes of some.

    Args:
        data: a part of a data set stands for the whole, so that a split by a seed changes nothing. No sample is loaded.

    Returns:
        None where it tells nothing of itself.
    """
    while isinstance(data, Subset):
        data = data.dataset
    known: list[Any] = [len(data)] if hasattr(data, "__len__") else []
    attributes = getattr(data, "__dict__", {})  # what it holds, not what it would have to work out
    known += [(name, facts) for name in _HELD if (facts := _facts(attributes.get(name)))]
    return hashlib.blake2b(repr(known).encode(errors="surrogateescape"), digest_size=8).hexdigest() if known else None


def _facts(value: Any) -> Any:
    """What identifies a value from run to run; None if nothing does."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        value = torch.from_numpy(np.ascontiguousarray(value.reshape(-1)[:: max(1, value.size // SAMPLED)]).view(np.uint8))
    if isinstance(value, Tensor):
        digest = BatchDigest()
        digest.add(value)
        return tuple(value.shape), digest.text
    if isinstance(value, list | tuple) and value:
        facts = [_fact(item) for item in value]
        sizes = [_size(item) for item in value[:: max(1, len(value) // SAMPLED)]]
        return None if None in facts else (facts, sizes)
    return None


def _fact(item: Any) -> Any:
    if isinstance(item, Tensor):
        return _facts(item)
    parts: Sequence[Any] = item if isinstance(item, list | tuple) else (item,)
    if not all(isinstance(part, str | int | float | Path) for part in parts):
        return None
    # Of a path the last two parts: the folder of the data may lie elsewhere.
    return [Path(part).parts[-2:] if isinstance(part, str | Path) else part for part in parts]


def _size(item: Any) -> int | None:
    path = item[0] if isinstance(item, list | tuple) and item else item
    return Path(path).stat().st_size if isinstance(path, str | Path) and Path(path).is_file() else None


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
