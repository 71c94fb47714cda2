"""Masks of every mode against those of `paper`, on published weights: SqueezeNet on photographs, ResNet-56 on CIFAR-10.

With insertion and deletion areas of the maps (`--curves` images), and controls that need no network: a centred blob and random
cells. Needs GROUPCAM_DATA.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from typing import Any

import torch
from common import (
    NORMALISE,
    NORMALISE_HALF,
    Setting,
    add_device_options,
    batch,
    conditions,
    data_folder,
    efficientnet,
    filed,
    photographs,
    report,
    squeezenet,
)
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

from groupcam_aug import GradCAM, GroupCAM, measure_fidelity
from groupcam_aug.baselines import centred_blob, random_cells
from groupcam_aug.borrow import as_found, capture
from groupcam_aug.map_ops import enlarge, minmax
from groupcam_aug.metrics import insertion_deletion
from groupcam_aug.presets import scoring_of

PLACES = {
    "squeezenet": ["features.7", "features.10"],
    "efficientnet": ["blocks.3", "blocks.5"],
    "resnet56": ["layer2", "layer3.4"],
}


def cifar(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The published ResNet-56 and test images of CIFAR-10, evenly taken."""
    from safetensors.torch import load_file

    from groupcam_aug.recipes.networks import CIFARResNet, load_checkpoint

    network = CIFARResNet(56, 10)
    load_checkpoint(network, load_file(data_folder() / "weights" / "resnet56_cifar10.safetensors"))
    with zipfile.ZipFile(data_folder() / "cifar10.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("cifar10/test/") and name.endswith(".jpg"))
        classes = sorted({name.split("/")[2] for name in names})
        chosen = names[:: max(1, len(names) // count)][:count]
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in chosen]
    images = torch.stack([NORMALISE(picture).as_subclass(Tensor) for picture in pictures])
    return network.eval(), images, torch.tensor([classes.index(name.split("/")[2]) for name in chosen])


def pretrained(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A published network of `PLACES`, and `count` images with their labels, evenly picked."""
    if name == "resnet56":
        return cifar(count)
    make, normalise = (squeezenet, NORMALISE) if name == "squeezenet" else (efficientnet, NORMALISE_HALF)
    pictures, classes = photographs()
    picked = torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().long().tolist()
    return make(), batch([pictures[i] for i in picked], normalise), torch.tensor([classes[i] for i in picked])


def sum_of_activations(network: nn.Module, layer: str) -> Any:
    """The map without scoring: the sum of the layer's channels, one forward pass, the same for every class."""

    def maps(images: Tensor, targets: Any) -> Tensor:
        with as_found(network, images.device), capture(network.get_submodule(layer), layer) as seen:
            network(images)
        return minmax(enlarge(seen.one().float().sum(dim=1, keepdim=True).relu(), images.shape[-2:])[:, 0])

    return maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--networks", nargs="+", choices=tuple(PLACES), default=list(PLACES))
    parser.add_argument("--photographs", type=int, default=300)
    parser.add_argument("--cifar", type=int, default=1000)
    parser.add_argument("--curves", type=int, default=60, help="images for insertion and deletion (default: 60)")
    parser.add_argument("--steps", type=int, default=14, help="of the curves (default: 14)")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    setting = Setting(options)
    if setting.half:
        parser.error("masks and areas are compared in fp32: leave --precision out")
    for name in options.networks:
        network, images, labels = pretrained(name, options.cifar if name == "resnet56" else options.photographs)
        network = setting.put(network)
        layer = GroupCAM(network)
        layer(images[:1].to(setting.device))
        rows = []
        for weights in ("none", "gradient"):
            modes: dict[str, Any] = {place: place for place in PLACES[name]}
            modes |= {"balanced": "stage", "target": "target", "fast": "target, zero"}
            modes |= {mode: mode for mode in ("paper, bf16-mixed", "fast, bf16-mixed")}
            if weights == "none":
                modes |= {
                    "sum of activations": sum_of_activations(network, str(layer.layer)),
                    "Grad-CAM": GradCAM(network),
                    "centred blob": lambda images, _: centred_blob(images[:, 0]),
                    "random cells": lambda images, _: minmax(random_cells(images[:, 0])),
                }
            found = measure_fidelity(
                network,
                images,
                labels,
                modes=modes,
                weights=weights,  # type: ignore[arg-type]
                regroupings=3 if weights == "none" else 1,
                batch_size=options.batch,
                progress=lambda parts: track(parts, f"{name}, weights={weights}"),  # noqa: B023
            )
            print(found, flush=True)
            areas = curves(network, images, labels, modes, weights, options, setting)
            for row in found.rows:
                rows.append([weights, row.mode, row.iou, row.iou_error, row.spearman, row.no_map, row.cost, *areas[row.mode]])
            rows.append([weights, "noise floor (regrouped)", found.floor, found.floor_error, *[None] * 5])
        told = conditions(
            setting.device,
            network=name,
            layer=layer.layer,
            images=len(images),
            images_of_the_curves=min(options.curves, len(images)),
            steps=options.steps,
            seed=0,
            **setting.told,
        )
        header = [
            "weights",
            "mode",
            "IoU with paper",
            "its standard error",
            "Spearman",
            "no map",
            "cost in F",
            "insertion",
            "deletion",
        ]
        report(filed(f"fidelity_{name}", setting.device), told, header, rows)


def curves(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    modes: dict[str, Any],
    weights: Any,
    options: argparse.Namespace,
    setting: Setting,
) -> dict[str, list[float]]:
    """Mean areas (substrate blur) of each mode's maps, of images evenly picked, those that all modes map."""
    picked = torch.linspace(0, len(images) - 1, min(options.curves, len(images))).round().long()
    images, labels = images[picked], labels[picked]
    methods: dict[str, Any] = {"paper": GroupCAM.for_training(network, weights=weights)}
    for mode, how in modes.items():
        if isinstance(how, str):
            how = GroupCAM.for_training(network, weights=weights, **scoring_of(how))
        methods[mode] = how
    areas: dict[str, Tensor] = {}
    for mode, method in track(methods.items(), "insertion and deletion", total=len(methods)):
        both = []
        for part in torch.arange(len(images)).split(options.batch):
            x, y = images[part].to(setting.device), labels[part].to(setting.device)
            found = insertion_deletion(network, x, method(x, y), y, steps=options.steps)
            both.append(torch.stack([found.insertion_auc, found.deletion_auc]))
        areas[mode] = torch.cat(both, dim=1)
    usable = torch.stack([found.isfinite().all(dim=0) for found in areas.values()]).all(dim=0)
    return {mode: found[:, usable].mean(dim=1).tolist() for mode, found in areas.items()}


if __name__ == "__main__":
    main()
