"""Data sets of torchvision by name, in the parts that their authors made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchvision import datasets

from groupcam_aug.recipes.image_folder import load_rgb

__all__ = ["DATASETS", "torchvision_parts"]

# name: (torchvision class, arguments of its training, validation and test part, None = no such part, may be downloaded)
DATASETS: dict[str, tuple[str, dict, dict | None, dict | None, bool]] = {
    "cifar10": ("CIFAR10", {"train": True}, None, {"train": False}, True),
    "cifar100": ("CIFAR100", {"train": True}, None, {"train": False}, True),
    "flowers102": ("Flowers102", {"split": "train"}, {"split": "val"}, {"split": "test"}, True),
    "imagenet": ("ImageNet", {"split": "train"}, {"split": "val"}, None, False),
    "imagenette": ("Imagenette", {"split": "train"}, {"split": "val"}, None, True),
    "oxfordiiitpet": ("OxfordIIITPet", {"split": "trainval"}, None, {"split": "test"}, True),
}


def torchvision_parts(
    name: str, root: Path, download: bool, train_transform: Callable, eval_transform: Callable
) -> tuple[Any, Any, Any, Any, list[str]]:
    """The training part, the same with the other transform, the validation and the test part, and the names of the classes.

    Without a validation part, that is to be held out of the second, else the second is None; so are parts that there are not.

    Files are read as our own folders are, upright; those of OxfordIIITPet as torchvision reads them.

    Raises:
        ValueError: no such name, or one that cannot be downloaded.
        FileNotFoundError: the data are not in ``root``.
    """
    key = name.lower()
    if key not in DATASETS:
        raise ValueError(f"dataset={name!r} is none of {', '.join(DATASETS)}; for your own images leave it out and give root")
    attribute, train, val, test, downloads = DATASETS[key]
    if download and not downloads:
        raise ValueError(f"dataset={name!r} cannot be downloaded; put it into root={str(root)!r} and set download to false")
    make: Any = getattr(datasets, attribute)

    def part_of(part: dict | None, transform: Callable) -> Any:
        if part is None:
            return None
        # Imagenette may refuse to download over an existing copy, the one of its other part included.
        present = key == "imagenette" and (root / "imagenette2").is_dir()
        made = make(root, transform=transform, **part, **({"download": True} if download and not present else {}))
        if hasattr(made, "loader"):
            made.loader = load_rgb
        return made

    try:
        training = part_of(train, train_transform)
        again, *rest = (part_of(part, eval_transform) for part in (train if val is None else None, val, test))
    except (RuntimeError, FileNotFoundError) as error:
        remedy = "set download to true, or root to the folder that has it" if downloads else "give root the folder that has it"
        raise FileNotFoundError(f"dataset={name!r} is not in root={str(root)!r} ({error}); {remedy}") from error
    names = getattr(training, "classes", None) or [str(i) for i in range(102)]  # only Flowers102 of older torchvision has none
    return training, again, *rest, [name if isinstance(name, str) else name[0] for name in names]
