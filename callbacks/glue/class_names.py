"""What the classes of a run are called, whoever knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from groupcam_aug.callbacks.glue.attributes import attribute, class_names

__all__ = ["class_name", "flattened", "known_class_names"]


def class_name(names: list[str] | None, label: int) -> str:
    """A class in words: "cat", or "class 3" where its name is not known."""
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"


def known_class_names(trainer: Any, module: Any) -> list[str] | None:
    """Names by class, from the first that knows them.

    Asked are `class_names` of the data module and of the module, then of their hyperparameters (which a checkpoint brings back),
    then `classes` of the data sets behind the training and validation loaders, as those of torchvision have it. A data set
    with a `target_transform` is not asked: its labels may be others.

    Returns:
        The names; None where nobody knows them.
    """
    homes = [home for home in (trainer.datamodule, module) if home is not None]
    for source in (*homes, *(attribute(home, "hparams") for home in homes)):
        if (names := class_names(attribute(source, "class_names"))) is not None:
            return names
    loaders = [*flattened(trainer.train_dataloader), *flattened(trainer.val_dataloaders)]
    return next((names for loader in loaders if (names := _of_dataset(attribute(loader, "dataset"))) is not None), None)


def flattened(loaders: Any) -> Iterator[Any]:
    """Loaders in lists and mappings of them, as deep as they lie."""
    if isinstance(loaders, Mapping | list | tuple):
        for inner in loaders.values() if isinstance(loaders, Mapping) else loaders:
            yield from flattened(inner)
    else:
        yield loaders


def _of_dataset(dataset: Any) -> list[str] | None:
    if isinstance(dataset, Subset):
        return _of_dataset(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        first, *others = (_of_dataset(part) for part in dataset.datasets)
        return first if all(names == first for names in others) else None
    if attribute(dataset, "target_transform") is not None:
        return None
    words = attribute(dataset, "classes")
    # ImageNet gives each class several names.
    words = [word[0] if isinstance(word, tuple) and word else word for word in words] if isinstance(words, list | tuple) else None
    return class_names(words) if words and all(isinstance(word, str) for word in words) else None
