"""What a network predicted, as a table of files, labels and probabilities."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from groupcam_aug.files import put_file
from groupcam_aug.recipes.spreadsheet import harmless

__all__ = ["check_top", "files_of", "labels_of", "write_predictions"]


def write_predictions(folder: Path, batches: Sequence[Tensor], data: Any, model: Any, top: int | None = None) -> Path:
    """One line per sample: file (or index), its label where the data know it, predicted class, its probability, and the others.

    Args:
        folder: where ``predictions.csv`` goes; made if missing.
        batches: probabilities (N, num_classes) in the order of the data's ``test_set``.
        data: its ``test_set.samples`` (file, label), or those of the data sets that it is a part or a sequence of, give files and
            labels, where it has them; so do ``targets``.
        model: its ``class_names``, where it has them, name the classes.
        top: so many likeliest classes, as ``class 2``, ``probability 2``, ... Default: None, the probability of every class, in a
            column of its name.

    Raises:
        ValueError: ``top`` is not between 1 and the number of classes.
    """
    probabilities = torch.cat(list(batches))
    count = probabilities.shape[1]
    check_top(top, count)
    values, order = probabilities.topk(top or 1, dim=1)
    dataset = getattr(data, "test_set", None)
    files, labels = files_of(dataset), labels_of(dataset)
    names = [harmless(name) for name in getattr(model, "class_names", None) or range(count)]
    heading = ["file" if files else "index", *(["label"] if labels else []), "class", "probability"]
    heading += [f"{what} {k}" for k in range(2, (top or 1) + 1) for what in ("class", "probability")]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*heading, *(names if top is None else [])])
    for i, (shares, first, row) in enumerate(zip(values.tolist(), order.tolist(), probabilities.tolist(), strict=True)):
        line = [harmless(files[i]) if files else i, *([names[labels[i]]] if labels else [])]
        for share, which in zip(shares, first, strict=True):
            line += [names[which], f"{share:.4f}"]
        writer.writerow([*line, *(f"{share:.4f}" for share in row if top is None)])
    put_file(folder, "predictions.csv", text.getvalue())
    return folder / "predictions.csv"


def check_top(top: int | None, count: int) -> None:
    """Refuse another number of likeliest classes than there can be.

    Raises:
        ValueError: ``top`` is not between 1 and ``count``.
    """
    if top is not None and not 1 <= top <= count:
        raise ValueError(f"--top {top}: give a number from 1 to {count}, for there are {count} classes")


def files_of(dataset: Any) -> list[str] | None:
    """The file of each sample of a data set, of a part or a sequence of such; None where it does not say."""
    return _each(dataset, lambda whole: None if (samples := getattr(whole, "samples", None)) is None else [s[0] for s in samples])


def labels_of(dataset: Any) -> list[int] | None:
    """The class of each sample, likewise."""

    def read(whole: Any) -> list[int] | None:
        labels = getattr(whole, "targets", getattr(whole, "_labels", None))  # torchvision's two names
        return None if labels is None else [int(label) for label in labels]

    return _each(dataset, read)


def _each(dataset: Any, read: Callable[[Any], list[Any] | None]) -> list[Any] | None:
    if isinstance(dataset, ConcatDataset):
        parts = [_each(part, read) for part in dataset.datasets]
        return None if None in parts else [item for part in parts for item in part or ()]
    if isinstance(dataset, Subset):
        whole = _each(dataset.dataset, read)
        return None if whole is None else [whole[i] for i in dataset.indices]
    return read(dataset)
