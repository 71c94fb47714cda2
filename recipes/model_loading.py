"""The network a command looks at: from a checkpoint of `fit` alone, or by name with a state dict; its transform and classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from groupcam_aug.checkpoints import read_checkpoint, read_state_dict
from groupcam_aug.recipes.classifier import INFO, load_classifier
from groupcam_aug.recipes.cli import device_of
from groupcam_aug.recipes.data import IMAGENET_MEAN, IMAGENET_STD, eval_transform, normalised
from groupcam_aug.recipes.image_files import BROKEN, open_rgb
from groupcam_aug.recipes.networks import build_network, check_size, head_name, load_checkpoint
from groupcam_aug.recipes.saved_classifier import exported_info
from groupcam_aug.recipes.unknown_names import nearest

__all__ = ["LoadedModel", "load_model", "read_images"]


LISTED = 20  # classes in a message


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode and how images reach it."""

    network: nn.Module
    transform: Callable[[Image.Image], Tensor]  # PIL image -> (3, size, size), normalised
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str]
    description: str  # in a line
    size: int = 224  # pixels a side

    def class_index(self, name: str) -> int:
        """The index of a class given by name, or by number where none has such a name.

        Raises:
            ValueError: no such class; near names are suggested, and those that there are listed.
        """
        if name in self.class_names:
            return list(self.class_names).index(name)
        if name.removeprefix("-").isdecimal():
            if not 0 <= int(name) < len(self.class_names):
                raise ValueError(
                    f"target {name} is outside the {len(self.class_names)} classes (0 to {len(self.class_names) - 1})"
                )
            return int(name)
        lower = [known.lower() for known in self.class_names]
        if name.lower() in lower:
            return lower.index(name.lower())
        alike = [known for known in self.class_names if name.lower() in known.lower()]
        if len(alike) == 1 or not alike:
            about = f"{nearest(name.lower(), map(str.lower, alike or lower))}; the classes"
        else:
            about = "; classes with that in their name"
        listed = alike if len(alike) > 1 else list(self.class_names)
        more = f", ... ({len(listed)} in all)" if len(listed) > LISTED else ""
        raise ValueError(
            f"no class {name!r}{about}: {', '.join(listed[:LISTED])}{more}; or give a number from 0 to {len(lower) - 1}"
        )


def load_model(options: argparse.Namespace) -> LoadedModel:
    """The network that `parsers.add_network` describes, on its device.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: no network, or two; unknown names; a checkpoint that does not fit.
    """
    if options.model is None and options.checkpoint is None:
        raise ValueError("say which network: --checkpoint FILE, or --model NAME with --checkpoint FILE or --pretrained")
    if options.pretrained and options.model is None:
        raise ValueError("--pretrained fetches the published weights of --model NAME, which is missing")
    if options.model is None:
        classifier, info = load_classifier(options.checkpoint, trust=options.trust)
        network, mean, std = classifier.network, info["mean"] or IMAGENET_MEAN, info["std"] or IMAGENET_STD
        size, resize, names = info["size"] or 224, info["resize"], info["class_names"]
        count, name = info["num_classes"], f"{options.checkpoint} ({type(network).__name__})"
        if options.size and options.size != size:
            resize = None  # belongs to the other size
    else:
        network, count = _by_name(options)
        mean, std, size, resize = _expects(network)
        names, name = None, options.model
        if options.checkpoint is not None and options.checkpoint.endswith(".safetensors"):
            kept = exported_info(options.checkpoint)
            mean, std, size = (kept.get(key) or usual for key, usual in (("mean", mean), ("std", std), ("size", size)))
            resize, names = (kept["resize"], kept["class_names"]) if kept else (resize, names)
    network = network.to(device_of(options.device)).eval()
    if options.size and options.size != size:
        check_size(network, options.size, name)
    size = options.size or size
    finish = normalised(mean, std)
    if options.resize == "squash":
        shape: v2.Transform = v2.Resize((size, size), antialias=True)
    else:
        shape = eval_transform(size, resize if resize is None or resize >= size else None)
    names, how = _class_names(options.classes, names, count), ", squashed" if options.resize == "squash" else ""
    return LoadedModel(
        network, lambda picture: finish(shape(picture)).as_subclass(Tensor), mean, std, names, f"{name}, {size} px{how}", size
    )


def read_images(
    paths: Sequence[Path], model: LoadedModel, batch_size: int, failed: dict[Path, str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Batches (paths, images (n, 3, H, W) normalised); a file that cannot be read is noted in `failed` and left out."""
    kept: list[Path] = []
    images: list[Tensor] = []
    for i, path in enumerate(paths):
        try:
            images.append(model.transform(open_rgb(path)))
            kept.append(path)
        except BROKEN as error:
            failed[path] = str(error)
        if images and (len(images) == batch_size or i == len(paths) - 1):
            yield kept, torch.stack(images)
            kept, images = [], []
    if images:
        yield kept, torch.stack(images)


def _by_name(options: argparse.Namespace) -> tuple[nn.Module, int]:
    """The network of --model and how many classes it has."""
    if (options.checkpoint is None) == (not options.pretrained):
        raise ValueError(
            f"--model {options.model} needs its weights: --checkpoint FILE with a state dict, or --pretrained to fetch the "
            "published ones, and not both"
        )
    if options.pretrained:
        count = _published_classes(options.model)
        return build_network(options.model, count, True), count
    content = read_checkpoint(options.checkpoint)
    if isinstance(content, dict) and set(INFO) <= set(content.get("hyper_parameters") or ()):
        raise ValueError(
            f"{options.checkpoint!r} says itself which network it holds and how images are prepared: leave out --model"
        )
    state = read_state_dict(options.checkpoint)
    draft = build_network(options.model, 1000)
    head = head_name(draft) + ".weight"
    count = len(state[head]) if head in state else 1000
    network = draft if count == 1000 else build_network(options.model, count)
    load_checkpoint(network, state)
    return network, count


def _published_classes(spec: str) -> int:
    """How many classes the published weights have; another number would silently get a fresh, random head.

    Raises:
        ValueError: they have no classifier.
    """
    import timm

    library, _, name = spec.rpartition("/")
    config = timm.get_pretrained_cfg(name) if library in ("", "timm") and timm.is_model(name) else None
    if config is None:
        return 1000  # all of torchvision's classifiers
    if not config.num_classes:
        raise ValueError(
            f"the published weights of {spec} have no classifier; fine-tune it and give --checkpoint, or another tag"
        )
    return int(config.num_classes)


def _expects(network: nn.Module) -> tuple[Sequence[float], Sequence[float], int, int | None]:
    """Mean, standard deviation, size and resize of a timm network, or the usual ones."""
    config: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    size = (config.get("input_size") or (3, 224, 224))[-1]
    crop = config.get("crop_pct")
    return config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD), size, round(size / crop) if crop else None


def _class_names(file: str | None, names: Sequence[str] | None, count: int) -> list[str]:
    if file is not None:
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(names) != count:
            raise ValueError(f"{file!r} names {len(names)} classes, but the network has {count}")
    if names is None and count == 1000:
        from torchvision.models import ResNet18_Weights

        names = ResNet18_Weights.DEFAULT.meta["categories"]  # ImageNet's, in the order every library keeps
    return list(names) if names is not None else [f"class {i}" for i in range(count)]
