"""``groupcam-aug explain``: saliency maps of images, drawn or raw."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from groupcam_aug.draw import panels, png, to_uint8
from groupcam_aug.guided import guided_grad_cam
from groupcam_aug.outputs import sum_to_one, why_not_finite
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.image_files import find_images, shown
from groupcam_aug.recipes.map_sheet import drawn, sheet
from groupcam_aug.recipes.model_loading import LoadedModel, load_model, read_images
from groupcam_aug.recipes.terminal import counted, say
from groupcam_aug.recipes.written_files import WrittenFiles
from groupcam_aug.saliency import GradCAM, GroupCAM

__all__ = ["explain", "run"]

ON_SHEET = 40  # rows of a page
GROUPS = 32  # of Group-CAM, where the layer has as many channels
NAMES = {"groupcam": "Group-CAM", "gradcam": "Grad-CAM", "guided-gradcam": "guided Grad-CAM"}

Maps = Callable[[Tensor, Tensor], Tensor]  # images (n, 3, H, W), classes (n,) -> (n, H, W), or (n, 3, H, W) for guided Grad-CAM


def run(command: str, words: list[str]) -> int:
    """The command; exit status 1 if an image could not be read."""
    parser = parsers.explain(command)
    options = parser.parse_args(words)
    if options.target is not None and options.top != 1:
        parser.error("--target and --top exclude each other")
    if options.top < 1 or options.batch_size < 1:
        parser.error("--top and --batch-size must be at least 1")
    console = Console(stderr=True)
    with refusing():
        model, paths = load_model(options), find_images(options.images, Path(options.out))
        fixed = None if options.target is None else model.class_index(options.target)
        if options.top > len(model.class_names):
            raise ValueError(f"--top {options.top}, but the network has {len(model.class_names)} classes")
    say(console, f"{model.description}; {counted(len(paths), 'image')}, {NAMES[options.method]}")
    with refusing():
        failed = explain(model, paths, options, fixed, console)
    for path, reason in failed.items():
        say(console, f"{shown(path)}: {reason}", mark="not read:")
    return 1 if failed else 0


def explain(
    model: LoadedModel, paths: list[Path], options: argparse.Namespace, fixed: int | None, console: Console
) -> dict[Path, str]:
    """Write a picture (or .npy) per image into `options.out`, sheets of `ON_SHEET` rows if there are several, and ``maps.json``.

    A picture lies where its image lies below the folder that all have in common, under the same name.

    Returns:
        The files that could not be read, with the reason.

    Raises:
        ValueError: a picture would take the place of an image.
        FileExistsError: or of another file that this command did not write.
    """
    out, raw = Path(options.out), options.style == "raw"
    files, failed = WrittenFiles(out, "explained"), dict[Path, str]()
    pages = [] if raw or len(paths) == 1 else [f"sheet_{i + 1}.png" for i in range(math.ceil(len(paths) / ON_SHEET))]
    names = _names(paths, ".npy" if raw else ".png", pages)
    written = [*pages, "maps.json", *names.values()]
    targets = {(out / name).resolve() for name in written}
    for path in paths:
        if path.resolve() in targets:
            raise ValueError(f"{str(path)!r} would be overwritten: give another folder by --out")
    files.check(written)
    rows, captions, records = list[list[Any]](), list[list[str]](), list[dict[str, Any]]()
    maps_of: Maps | None = None
    about: dict[str, Any] = {}
    heading: list[str] = []

    def put_page() -> None:
        page = sheet(rows, captions, heading, options.method == "guided-gradcam")
        files.put(pages.pop(0), png(page))
        rows.clear()
        captions.clear()

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("mapping", total=len(paths))
        for batch, images in read_images(paths, model, options.batch_size, failed):
            images = images.to(next(model.network.parameters()).device)
            with torch.no_grad():
                logits = model.network(images)
            if not bool(logits.isfinite().any()):
                raise ValueError(f"the network returns no finite number for {shown(batch[0])}: {why_not_finite(model.network)}")
            if maps_of is None:
                layer, channels = _layer(model, images, options.layer)
                groups = min(GROUPS, channels) if options.groups is None else options.groups
                maps_of = _method(model, options, layer, groups)
                settings = {"groups": groups, "mask_at": options.mask_at} if options.method == "groupcam" else {}
                about = {"method": options.method, "layer": layer, **settings, "network": model.description}
                heading = [f"{NAMES[options.method]}, layer {layer}", _in_words(**settings), model.description]
            probability = logits if sum_to_one(logits) else logits.softmax(dim=1)
            classes = (
                probability.topk(options.top, dim=1).indices if fixed is None else images.new_full((len(images), 1), fixed).long()
            )
            maps = torch.stack([maps_of(images, chosen) for chosen in classes.unbind(dim=1)], dim=1)
            pixels = to_uint8(images, model.mean, model.std)
            for i, path in enumerate(batch):
                shares, chosen = probability[i, classes[i]].tolist(), classes[i].tolist()
                empty = [not bool(one.any()) for one in maps[i]]
                of_maps = [
                    {"class": model.class_names[c], "index": c, "probability": round(share, 4), "empty": none}
                    for c, share, none in zip(chosen, shares, empty, strict=True)
                ]
                records.append({"image": str(path), "file": names[path], "maps": of_maps})
                if raw:
                    np.save(buffer := io.BytesIO(), maps[i].cpu().numpy())
                    files.put(names[path], buffer.getvalue())
                    continue
                labels = [f"{model.class_names[c]} {share:.0%}" for c, share in zip(chosen, shares, strict=True)]
                if fixed is None and path.parent.name in model.class_names and model.class_names[chosen[0]] != path.parent.name:
                    labels[0] += f", not {path.parent.name}"
                rows.append([pixels[i], *(drawn(pixels[i], m, options.style) for m in maps[i])])
                captions.append([(Path(names[path]).parent / path.name).as_posix(), *labels])
                picture = panels(rows[-1:], captions=[[path.name, *labels]], size=max(224, *pixels.shape[-2:]))
                files.put(names[path], png(picture))
                if len(rows) == ON_SHEET and pages:
                    put_page()
            progress.update(task, completed=min(len(paths), progress.tasks[0].completed + len(batch)))
        progress.update(task, completed=len(paths))
    if rows and pages:
        put_page()
    files.put("maps.json", (json.dumps({**about, "images": records}, indent=1) + "\n").encode())
    say(console, f"wrote {counted(len(records), 'array' if raw else 'picture')} and maps.json to {shown(out)}/")
    missing = sum(one["empty"] for record in records for one in record["maps"])
    if missing:
        are = "map is empty" if missing == 1 else "maps are empty"
        say(console, f"{missing} {are}: nothing in the image speaks for that class more than its blurred copy does")
    return failed


def _method(model: LoadedModel, options: argparse.Namespace, layer: str, groups: int) -> Maps:
    if options.method == "guided-gradcam":
        return lambda images, classes: guided_grad_cam(model.network, images, classes, layer)
    if options.method == "gradcam":
        return GradCAM(model.network, layer)  # type: ignore[return-value]
    return GroupCAM(model.network, layer, groups=groups, mask_at=options.mask_at)


def _layer(model: LoadedModel, images: Tensor, layer: str | None) -> tuple[str, int]:
    """The layer that is explained, found where it is not given, and how many channels it has."""
    cam = GroupCAM(model.network, layer, groups=1, weights="none", denoise=None)
    cam(images[:1], 0)
    return str(cam.layer), cam.layer_shape[0]


def _in_words(groups: int = 0, mask_at: str = "") -> str:
    """How Group-CAM makes its maps; nothing for another method."""
    place = {"input": "the input", "stage": "the last stage", "target": "the layer"}.get(mask_at, mask_at)
    return f"{counted(groups, 'group')}, masks on {place}" if groups else ""


def _names(paths: list[Path], suffix: str, taken: Sequence[str]) -> dict[Path, str]:
    """For each image the file to write: its path below the folder in common, with the image's suffix only where it must be."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    below = {path: path.absolute().relative_to(root) for path in paths}
    bare = Counter([*(path.with_suffix(suffix).as_posix() for path in below.values()), *taken])
    return {
        path: name if bare[name := part.with_suffix(suffix).as_posix()] == 1 else f"{part.as_posix()}{suffix}"
        for path, part in below.items()
    }
