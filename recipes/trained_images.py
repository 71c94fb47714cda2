"""Which images a network was trained on: kept in its checkpoint, so that nobody tests on them by mistake."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from groupcam_aug.recipes.cli import Refused
from groupcam_aug.recipes.image_folder import ClassFolders
from groupcam_aug.recipes.splits import hash64

__all__ = ["TrainedOn", "check_untrained", "describe", "image_ids", "sample_names"]


class TrainedOn(Refused, ValueError):
    """Images to test or validate on were trained on."""


def sample_names(dataset: Any) -> Sequence[str]:
    """What each sample is called wherever the data lie: the path below the folder; where there are no files, its number."""
    names: Sequence[str] = dataset.names if isinstance(dataset, ClassFolders) else [str(i) for i in range(len(dataset))]
    return names


def image_ids(dataset: Any) -> Tensor:
    """(N,) int64: a number for each image.

    Of a file it follows from the name of the folder of class folders, the path below it, and the size in bytes, so that a folder
    may be copied or lie elsewhere. Of a part of a data set of torchvision it follows from the sample's number. The whole of such
    a set has none: which part is for training is its authors' matter.
    """
    whole, indices = _whole(dataset)
    if isinstance(whole, ClassFolders):
        folder, files = Path(whole.root).resolve().name, [whole.samples[i][0] for i in indices]
        texts: Iterable[str] = (f"{folder}/{whole.names[i]} {_size(file)}" for i, file in zip(indices, files, strict=True))
    else:
        texts = (f"{type(whole).__name__} {i}" for i in indices) if isinstance(dataset, Subset) else ()
    return torch.tensor([hash64(text) - 2**63 for text in texts], dtype=torch.int64)


def check_untrained(dataset: Any, trained: Tensor | None, purpose: str) -> None:
    """Refuse images that were trained on.

    Args:
        dataset: to be tested or validated on.
        trained: (M,) int64, numbers of `image_ids`. None: a checkpoint of a former version, which does not say.
        purpose: "test" or "validate", for the message.

    Raises:
        TrainedOn: some of them were; or nobody knows, of a part that was held out, which former versions chose otherwise.
    """
    if trained is None:
        if isinstance(dataset, Subset):
            raise TrainedOn(
                "the checkpoint does not say which images were trained on, and its version held out others than this one does: "
                f"to {purpose}, give images that it did not see, by test= (--data.test FOLDER) or in val/"
            )
        return
    if not len(trained):
        return
    known = torch.isin(image_ids(dataset), trained)
    if bool(known.any()):
        whole, indices = _whole(dataset)
        first = sample_names(whole)[indices[int(known.nonzero()[0])]]
        raise TrainedOn(
            f"{int(known.sum())} of the {len(known)} images to {purpose} on were trained on, {first!r} the first of them: give "
            "the seed and val_fraction of the training, or a folder of other images by test= (--data.test FOLDER)"
        )


def describe(dataset: Any, root: Path, split: str) -> str:
    """What is tested on, in words.

    Args:
        dataset: files of class folders, or a part of them that was held out, or others.
        root: that ``test=`` is relative to.
        split: what chose the part that was held out.
    """
    whole, indices = _whole(dataset)
    if not isinstance(whole, ClassFolders):
        return f"{len(indices)} images of {type(whole).__name__}"
    if whole is dataset:
        return f"{len(indices)} images in {str(whole.root)!r}"
    every = os.path.relpath(whole.root, root)
    return (
        f"{len(indices)} of the {len(whole)} images in {str(whole.root)!r}, held out from training by {split}; test={every!r} "
        f"(--data.test {every}) takes all of them"
    )


def _whole(dataset: Any) -> tuple[Any, Sequence[int]]:
    return (dataset.dataset, dataset.indices) if isinstance(dataset, Subset) else (dataset, range(len(dataset)))


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except FileNotFoundError:  # while training, which must not end for it
        return -1
