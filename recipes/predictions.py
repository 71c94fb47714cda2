"""What a network predicted, as a table of files and classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from groupcam_aug.files import put_file
from groupcam_aug.recipes.spreadsheet import harmless

__all__ = ["write_predictions"]


def write_predictions(folder: Path, batches: Sequence[Tensor], data: Any, model: Any) -> Path:
    """One line per sample: file (or index), predicted class, its probability.

    Args:
        folder: where ``predictions.csv`` goes; made if missing.
        batches: probabilities (N, num_classes) in the order of the data's ``test_set``.
        data: its ``test_set.samples``, or those of the data sets that it is a part or a sequence of, give the files, where it
            has them.
        model: its ``class_names``, where it has them, name the classes.
    """
    probability, label = torch.cat(list(batches)).max(dim=1)
    files = _files(getattr(data, "test_set", None))
    names = getattr(model, "class_names", None)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file" if files else "index", "class", "probability"])
    for i, (which, share) in enumerate(zip(label.tolist(), probability.tolist(), strict=True)):
        file, name = files[i] if files else i, names[which] if names else which
        writer.writerow([harmless(file), harmless(name), f"{share:.4f}"])
    put_file(folder, "predictions.csv", text.getvalue())
    return folder / "predictions.csv"


def _files(dataset: Any) -> list[str] | None:
    """The file of each sample; None where a data set does not say."""
    if isinstance(dataset, ConcatDataset):
        parts = [_files(part) for part in dataset.datasets]
        return None if None in parts else [file for part in parts for file in part or ()]
    if isinstance(dataset, Subset):
        files = _files(dataset.dataset)
        return None if files is None else [files[i] for i in dataset.indices]
    samples = getattr(dataset, "samples", None)
    return None if samples is None else [sample[0] for sample in samples]
