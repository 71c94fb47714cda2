"""The network a command looks at: from a checkpoint alone, or by name with its weights; its transform and class names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from groupcam_aug.recipes.classifier import load_classifier
from groupcam_aug.recipes.cli import device_of
from groupcam_aug.recipes.data import BROKEN, IMAGENET_MEAN, IMAGENET_STD, as_rgb, eval_transform, is_hidden
from groupcam_aug.recipes.networks import build_network, head_name, load_weights, read_state_dict

__all__ = ["Subject", "add_arguments", "find_images", "load_subject", "read_images", "shown"]


@dataclass(frozen=True)
class Subject:
    """A network in eval mode and how images reach it."""

    network: nn.Module
    transform: Callable[[Image.Image], Tensor]  # PIL image -> (3, size, size), normalised
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str]
    told: str  # one line: what it is

    def class_index(self, name: str) -> int:
        """The index of a class given by name, or by number where none has such a name.

        Raises:
            ValueError: no such class; near names are suggested.
        """
        if name in self.class_names:
            return list(self.class_names).index(name)
        if name.lstrip("-").isdigit():
            if not 0 <= int(name) < len(self.class_names):
                raise ValueError(
                    f"target {name} is outside the {len(self.class_names)} classes (0 to {len(self.class_names) - 1})"
                )
            return int(name)
        lower = [known.lower() for known in self.class_names]
        if name.lower() in lower:
            return lower.index(name.lower())
        from groupcam_aug.recipes.cli import nearest

        raise ValueError(f"no class {name!r}{nearest(name.lower(), lower)}; give a name or a number from 0 to {len(lower) - 1}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a command is given its network."""
    group = parser.add_argument_group("network (a checkpoint alone, or a name with its weights)")
    group.add_argument(
        "--ckpt_path", "--ckpt", metavar="FILE", help="a .ckpt that `groupcam-aug fit` wrote; nothing else is needed"
    )
    group.add_argument("--model", metavar="NAME", help="timm/<name>, torchvision/<name>, or a bare name")
    group.add_argument("--weights", metavar="FILE", help="local state dict for --model (.safetensors, .pt, .pth)")
    group.add_argument("--pretrained", action="store_true", help="fetch --model's published weights")
    group.add_argument("--classes", metavar="FILE", help="class names, one a line (default: those the weights come with)")
    group.add_argument("--size", type=int, help="pixels a side (default: the network's own)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")


def load_subject(options: argparse.Namespace) -> Subject:
    """The network that `add_arguments` describes, on its device.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: neither or both of checkpoint and name, unknown names, weights that do not fit.
    """
    if (options.ckpt_path is None) == (options.model is None):
        raise ValueError("say which network: --ckpt_path FILE, or --model NAME with --weights FILE or --pretrained")
    if options.ckpt_path is not None:
        classifier, info = load_classifier(options.ckpt_path)
        network, mean, std = classifier.network, info["mean"] or IMAGENET_MEAN, info["std"] or IMAGENET_STD
        size, resize, names = info["size"] or 224, info["resize"], info["class_names"]
        count, told = info["num_classes"], f"{options.ckpt_path} ({type(network).__name__})"
    else:
        network, count = _by_name(options)
        mean, std, size, resize = _expects(network)
        names, told = None, options.model
    network = network.to(device_of(options.device)).eval()
    if options.size and options.size != size and options.ckpt_path is not None:
        resize = None  # belongs to the other size
    size = options.size or size
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))])
    shape = eval_transform(size, resize if resize is None or resize >= size else None)
    names = _class_names(options.classes, names, count)
    return Subject(network, lambda picture: finish(shape(picture)).as_subclass(Tensor), mean, std, names, f"{told}, {size} px")


def find_images(paths: Sequence[str], out: Path | None = None) -> list[Path]:
    """Image files among `paths`: files as they are, folders searched through but for hidden parts and for `out`, in order.

    Raises:
        FileNotFoundError: a path that is not there, or a folder without images.
        ValueError: `out` is one of the folders.
    """
    found: list[Path] = []
    own = None if out is None else out.resolve()  # pictures of an earlier call are none of the user's
    for path in map(Path, paths):
        if path.is_dir():
            if path.resolve() == own:
                raise ValueError(f"{str(path)!r} is the folder to write to: leave it out, or give another by --out")
            files = (file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
            skip = own if own is not None and path.resolve() in own.parents else None
            inside = sorted(f for f in files if not is_hidden(f, path) and (skip is None or skip not in f.resolve().parents))
            if not inside:
                raise FileNotFoundError(f"{str(path)!r} holds no image ({', '.join(IMG_EXTENSIONS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{str(path)!r} is not there")
    return found


def shown(path: Path) -> str:
    """A path for people; of a name that is not UTF-8, what can be shown."""
    return os.fsencode(path).decode(errors="replace")


def read_images(
    paths: Sequence[Path], subject: Subject, batch_size: int, failed: dict[Path, str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Batches (paths, images (n, 3, H, W) normalised); a file that cannot be read is noted in `failed` and left out."""
    kept: list[Path] = []
    images: list[Tensor] = []
    for i, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                images.append(subject.transform(as_rgb(picture)))
            kept.append(path)
        except BROKEN as error:
            failed[path] = str(error)
        if images and (len(images) == batch_size or i == len(paths) - 1):
            yield kept, torch.stack(images)
            kept, images = [], []
    if images:
        yield kept, torch.stack(images)


def _by_name(options: argparse.Namespace) -> tuple[nn.Module, int]:
    if options.weights is None and not options.pretrained:
        raise ValueError(
            f"--model {options.model} needs its weights: --weights FILE, or --pretrained to fetch the published ones"
        )
    if options.weights is None:
        count = _published_classes(options.model)
        return build_network(options.model, count, True), count
    state = read_state_dict(options.weights)
    draft = build_network(options.model, 1000)
    head = head_name(draft) + ".weight"
    count = len(state[head]) if head in state else 1000
    network = draft if count == 1000 else build_network(options.model, count)
    load_weights(network, state)
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
        raise ValueError(f"the published weights of {spec} have no classifier; fine-tune it and give --ckpt_path, or another tag")
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
